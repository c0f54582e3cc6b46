from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.published import load_published_weights
from training.networks.autoencoder import (
    Autoencoder,
    Form,
    blend,
    channels_by_resolution,
    mix_input,
)

FORMS: tuple[Form, ...] = ("residual18", "residual9", "regular")


def make(form: Form = "residual18", *, seed: int = 3, **settings: Any) -> Autoencoder:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "final_resolution": 32,
        "image_channels": 3,
        "latent_resolution": 4,
        "latent_channels": 6,
        "channels": (3, 4, 5, 7),
    }
    return Autoencoder(form=form, **(defaults | settings))


def images_of(resolution: int, *, channels: int = 3, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((2, channels, resolution, resolution), generator=generator) * 2 - 1


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("latent_resolution", [1, 4, 8])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_shapes_at_every_resolution(
    form: Form, latent_resolution: int, image_channels: int
) -> None:
    channels = 5 if latent_resolution == 8 else (3, 4, 5, 7)
    network = make(
        form,
        image_channels=image_channels,
        latent_resolution=latent_resolution,
        latent_channels=6,
        channels=channels,
    )
    for resolution in (8, 16, 32):
        images = images_of(resolution, channels=image_channels)
        latents = network.encode(images, resolution=resolution)
        assert latents.shape == (2, 6, latent_resolution, latent_resolution)
        assert network(images, resolution=resolution).shape == images.shape


@pytest.mark.parametrize("form", FORMS)
def test_a_fade_starts_at_the_former_resolution_enlarged(form: Form) -> None:
    network, images = make(form), images_of(32)
    former = network(F.avg_pool2d(images, 2), resolution=16)
    enlarged = former.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_close(network(images, resolution=32, alpha=0.0), enlarged)


@pytest.mark.parametrize("form", FORMS)
def test_a_fade_ends_at_the_new_resolution(form: Form) -> None:
    network, images = make(form), images_of(32)
    stabilized = network(images, resolution=32)
    assert_close(network(images, resolution=32, alpha=1.0), stabilized)
    assert not torch.allclose(network(images, resolution=32, alpha=0.5), stabilized, atol=1e-2)


def test_alpha_may_be_a_tensor() -> None:
    network, images = make(), images_of(16)
    by_number = network(images, resolution=16, alpha=0.3)
    assert_close(network(images, resolution=16, alpha=torch.tensor(0.3)), by_number)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("resolution", "alpha"), [(4, None), (16, None), (16, 0.3), (16, 1.0)])
def test_parameters_at_a_resolution_are_those_that_a_call_trains(
    form: Form, resolution: int, alpha: float | None
) -> None:
    network = make(form)
    network(images_of(resolution), resolution=resolution, alpha=alpha).square().sum().backward()
    trained = {id(p) for p in network.parameters() if p.grad is not None}
    listed = network.parameters_at(resolution, is_fading=alpha is not None)
    assert {id(p) for p in listed} == trained
    assert len(listed) == len(trained)


def test_same_seed_same_weights() -> None:
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    for one, same, different in pairs:
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_channels_last_moves_no_result() -> None:
    network, images = make(), images_of(32)
    expected = network(images, resolution=32, alpha=0.4)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it alone
    actual = network(images.contiguous(memory_format=torch.channels_last), resolution=32, alpha=0.4)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_convolutional_latents_take_images_that_are_not_square() -> None:
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    network = make()
    assert network.encode(images, resolution=32).shape == (2, 6, 4, 6)
    assert network(images, resolution=32, alpha=0.3).shape == images.shape


def test_256_px_go_through() -> None:
    network = make(final_resolution=256, latent_resolution=1, channels=2)
    assert network(images_of(256), resolution=256, alpha=0.5).shape == (2, 3, 256, 256)


@pytest.mark.parametrize("form", FORMS)
def test_a_network_learns_to_reconstruct(form: Form) -> None:
    network, images = make(form), images_of(8)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = (network(images, resolution=8) - images).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_channels_are_listed_from_the_finest() -> None:
    assert channels_by_resolution(32, 8, (1, 2, 3)) == {32: 1, 16: 2, 8: 3}
    assert channels_by_resolution(16, 1, 9) == {16: 9, 8: 9, 4: 9}


@pytest.mark.parametrize(
    ("final", "latent", "channels", "message"),
    [
        (32, 4, (1, 2, 3), "3 channel counts for 4 resolutions: give one for each of 32, 16, 8, 4"),
        (32, 2, 4, "latent of 2 px is not known"),
        (48, 4, 4, "power of two apart"),
        (8, 16, 4, "power of two apart"),
    ],
)
def test_channels_that_do_not_fit_are_refused(
    final: int, latent: int, channels: int | tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        channels_by_resolution(final, latent, channels)


def test_input_is_shrunk_and_mixed() -> None:
    images = torch.arange(2 * 8 * 8.0).reshape(1, 2, 8, 8)
    assert torch.equal(mix_input(images, resolution=8), images)
    halved = F.avg_pool2d(images, 2)
    assert_close(mix_input(images, resolution=4), halved)
    doubled = halved.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_close(mix_input(images, resolution=8, alpha=0.25), 0.75 * doubled + 0.25 * images)


def test_blend_weighs_the_new_by_alpha() -> None:
    assert blend(torch.tensor(10.0), torch.tensor(20.0), 0.3).item() == pytest.approx(13.0)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"model.res_64.0.model.1.model.0.weight": torch.zeros(1)}, "no part res_64 here"),
        ({"model.res_4.0.model.1.model.0.weight": torch.zeros(1)}, "has 1 convolutions, 3 here"),
        (
            {
                f"model.preprocess_res_4.{place}.{suffix}": torch.zeros(1)
                for place in ("0.model.0", "1.model.1.model.0", "1.model.2.model.0")
                for suffix in ("weight", "bias")
            },
            r"is \(1,\), \(7, 3, 3, 3\) here: build the same channels",
        ),
    ],
)
def test_published_weights_that_do_not_fit_are_refused(
    encoder: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_published_weights(make("residual9"), encoder=encoder, decoder={})
