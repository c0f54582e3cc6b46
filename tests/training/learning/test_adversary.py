"""The adversarial term: as published, growing, and out of the way where it is not asked for."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.toy_training import CPU, Bench, steady
from training.data.augmentation import draw_shares
from training.learning.loop import DivergenceError, critic_step, train_step
from training.learning.state import Recipe, Workers, begin_training
from training.networks.discriminator import Discriminator
from training.networks.inputs import to_tensor
from training.networks.layers import halve
from training.networks.losses import adversarial_loss, critic_loss

Floats = NDArray[np.float64]

WEIGHT = {"weight": 0.1}


def test_the_critics_loss_and_gradients_are_the_published_ones() -> None:
    """For judgements `a |x|^2 + w x`, all can be written down: the slope at x is `2 a x + w`."""
    draw = np.random.default_rng(1)
    real, made = draw.normal(size=(2, 5, 24))
    shares, w, a = draw.uniform(size=5), draw.normal(size=24), np.float64(0.3)

    def judge(images: Floats) -> Floats:
        judged: Floats = a * (images**2).sum(1) + images @ w
        return judged

    mixed = shares[:, None] * real + (1 - shares[:, None]) * made
    slopes = 2 * a * mixed + w
    lengths = np.sqrt((slopes**2).sum(1))
    drift = (judge(real) ** 2).mean() + (judge(made) ** 2).mean()
    value = judge(made).mean() - judge(real).mean() + 0.02 * drift
    value += 7 * ((lengths - 1) ** 2).mean()
    pull = (2 * (1 - 1 / lengths))[:, None] * slopes  # of the penalty on each slope
    by_w = made.mean(0) - real.mean(0) + 7 * pull.mean(0)
    by_a = (made**2).sum(1).mean() - (real**2).sum(1).mean() + 7 * (pull * 2 * mixed).sum(1).mean()
    for images in (real, made):
        by_w += 0.04 * (judge(images)[:, None] * images).mean(0)
        by_a += 0.04 * (judge(images) * (images**2).sum(1)).mean()

    learnt_w, learnt_a = (torch.tensor(each, requires_grad=True) for each in (w, a))
    loss = critic_loss(
        lambda x: learnt_a * x.square().sum((1, 2, 3)) + x.flatten(1) @ learnt_w,
        torch.from_numpy(real.reshape(5, 2, 3, 4)),
        torch.from_numpy(made.reshape(5, 2, 3, 4)),
        torch.from_numpy(shares),
        gradient_weight=7,
        drift_weight=0.02,
    )
    found = torch.autograd.grad(loss, [learnt_w, learnt_a])
    assert loss.item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(found[0], by_w, rtol=1e-10)
    assert found[1].item() == pytest.approx(by_a, rel=1e-10)


def test_the_autoencoder_learns_from_a_discriminator_that_stays_as_it_is() -> None:
    discriminator = make_discriminator()
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    judge = partial(discriminator.judge_frozen, resolution=8)
    loss = adversarial_loss(judge, images)
    assert loss.item() == pytest.approx(-discriminator(images, resolution=8).mean().item())
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def make_discriminator(form: str = "residual9") -> Discriminator:
    torch.manual_seed(2)
    return Discriminator(final_resolution=32, image_channels=1, channels=(5, 6), form=form)  # type: ignore[arg-type]  # a form's name


@pytest.mark.parametrize("form", ["residual9", "residual18", "regular"])
def test_a_discriminator_grows_over_three_resolutions(form: str) -> None:
    discriminator = make_discriminator(form)
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    for resolution in (32, 16):
        judge = partial(discriminator, images, resolution=resolution)
        former = discriminator(halve(images), resolution=resolution // 2)
        new = judge()
        assert new.shape == (3,)
        assert not torch.allclose(new, former)
        assert torch.allclose(judge(alpha=1.0), new, atol=1e-6)
        assert torch.allclose(judge(alpha=0.0), former, atol=1e-6)
        used = discriminator.parameters_at(resolution, is_fading=False)
        judge().sum().backward()
        having = {id(p) for p in discriminator.parameters() if p.grad is not None}
        assert having == {id(p) for p in used}
        discriminator.zero_grad()
        images = halve(images)


def test_what_is_mixed_depends_on_its_sample_alone() -> None:
    whole = draw_shares(np.arange(10_000), seed=3)
    assert np.array_equal(draw_shares(np.arange(20, 50, 3), seed=3), whole[20:50:3])
    assert 0 <= whole.min() < 0.01
    assert 0.99 < whole.max() < 1
    assert np.allclose(np.histogram(whole, 4)[0], 2_500, atol=150)
    assert not np.array_equal(draw_shares(np.arange(10_000), seed=4), whole)


def test_both_learn_and_the_reconstruction_gets_better() -> None:
    bench = Bench(**steady(16, 40), adversarial=WEIGHT, log_every=1)
    state = begin_training(bench.recipe)
    reports = bench.run(state)
    losses = {name: [r.metrics[name] for r in reports] for name in reports[0].metrics}
    assert np.mean(losses["train_loss"][-5:]) < 0.75 * losses["train_loss"][0]
    assert np.mean(losses["discriminator_loss"][-5:]) < 0.5 * losses["discriminator_loss"][0]
    assert np.std(losses["adversarial_loss"]) > 0
    assert state.sample == 3 * 40 * 12


def test_a_training_without_a_weight_knows_no_adversary() -> None:
    """That its bits are those of before, `test_refactoring` says."""
    with_one = begin_training(Bench(adversarial=WEIGHT).recipe).autoencoder.state_dict()
    bench = Bench(adversarial={"weight": 0.0})
    state = begin_training(bench.recipe)
    assert state.adversary is None
    for name, value in state.autoencoder.state_dict().items():
        assert torch.equal(with_one[name], value)
    assert "discriminator_loss" not in bench.run(state)[-1].metrics


def test_each_steps_its_own_network_alone() -> None:
    bench = Bench(adversarial=WEIGHT)
    state = begin_training(bench.recipe)
    assert state.adversary is not None
    images = to_tensor(bench.images.read_batch(0, 12), resolution=32)
    networks = (state.autoencoder, state.adversary.discriminator)
    before = [[value.clone() for value in network.parameters()] for network in networks]

    def have_moved() -> list[bool]:
        return [
            any(not torch.equal(*pair) for pair in zip(network.parameters(), old, strict=True))
            for network, old in zip(networks, before, strict=True)
        ]

    critic_step(bench.recipe, state, images, samples=np.arange(12))
    assert have_moved() == [False, True]
    before[1] = [value.clone() for value in networks[1].parameters()]
    train_step(bench.recipe, state, images)
    assert have_moved() == [True, False]


def test_shares_of_a_batch_average_to_the_critics_gradient() -> None:
    """Unequal shares: 5 and 2 of 7 images weigh as they should."""
    growth = steady(16, 5)["growth"] | {"batch_sizes": 7}
    bench = Bench(**(steady(16, 5) | {"growth": growth}), adversarial=WEIGHT)
    images = to_tensor(bench.images.read_batch(0, 7), resolution=16)

    def learn(recipe: Recipe, part: slice) -> list[Tensor]:
        state = begin_training(recipe)
        critic_step(recipe, state, images[part], samples=np.arange(7)[part])
        assert state.adversary is not None
        parameters = state.adversary.discriminator.parameters()
        return [value.grad for value in parameters if value.grad is not None]

    whole = learn(bench.recipe, slice(0, 7))
    pair = Recipe(bench.settings, bench.recipe.features, 1, CPU, Workers(size=2))
    for expected, *parts in zip(
        whole, *(learn(pair, part) for part in (slice(0, 5), slice(5, 7))), strict=True
    ):
        assert torch.allclose(sum(parts) / 2, expected, atol=1e-5)


def test_a_discriminator_that_is_no_number_any_more_stops_the_training() -> None:
    bench = Bench(adversarial=WEIGHT)
    state = begin_training(bench.recipe)
    assert state.discriminator is not None
    with torch.no_grad():
        state.discriminator.parameters_at(8, is_fading=False)[0].fill_(torch.nan)
    with pytest.raises(DivergenceError, match="the loss has become nan at 8 px"):
        bench.run(state)


@pytest.mark.slow
def test_an_adversarial_objective_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.compile  # all of it but the writing of machine code, which takes a minute
    monkeypatch.setattr(torch, "compile", lambda it, **_: plain(it, backend="aot_eager"))
    bench = Bench(
        **steady(16, 3), adversarial=WEIGHT, log_every=1, acceleration={"compiles_steps": True}
    )
    as_is = Bench(**steady(16, 3), adversarial=WEIGHT, log_every=1)
    for ours, theirs in zip(
        bench.run(begin_training(bench.recipe)),
        as_is.run(begin_training(as_is.recipe)),
        strict=True,
    ):
        for name in ("train_loss", "adversarial_loss", "discriminator_loss"):
            assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-3, abs=1e-4)
