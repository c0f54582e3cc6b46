"""The switches: each does what it says, and moves the loss by no more than it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._inductor.exc import TritonMissing

from pipeline.errors import SettingsError
from tests.support.toy_training import CPU, Bench, steady
from tests.support.toys import make_settings
from training.learning.speed import (
    Alpha,
    Features,
    Losses,
    TargetCache,
    compile_objective,
)
from training.learning.state import begin_training
from training.networks.growth import GrowthState
from training.networks.precision import ReducedFeatures

# PyTorch's compiler warns of PyTorch's own older one while it is imported.
its_own_warning = pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")

STEADY: Final = GrowthState(16, "stabilize", None, 0, 0, 3)
FADING: Final = GrowthState(16, "fade_in", 0.5, 1, 0, 3)


def train_toys(**changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of each step, and the weights at the end."""
    bench = Bench(**steady(16, 14), log_every=1, **changes)
    state = begin_training(bench.recipe)
    losses = [report.metrics["train_loss"] for report in bench.run(state)]
    return torch.tensor(losses), state.autoencoder.state_dict()


@pytest.fixture(scope="module")
def exact() -> tuple[Tensor, dict[str, Tensor]]:
    return train_toys(acceleration={"target_cache_bytes": 0})


def test_kept_target_features_move_no_bit(exact: tuple[Tensor, dict[str, Tensor]]) -> None:
    losses, weights = train_toys()
    assert torch.equal(losses, exact[0])
    assert all(torch.equal(weights[name], exact[1][name]) for name in weights)


def test_images_on_the_device_move_no_bit(exact: tuple[Tensor, dict[str, Tensor]]) -> None:
    losses, weights = train_toys(acceleration={"images_on_device": "always"})
    assert torch.equal(losses, exact[0])
    assert all(torch.equal(weights[name], exact[1][name]) for name in weights)


def test_the_layout_in_memory_moves_rounding_alone(
    exact: tuple[Tensor, dict[str, Tensor]],
) -> None:
    losses, weights = train_toys(acceleration={"uses_channels_last": False})
    torch.testing.assert_close(losses, exact[0], rtol=1e-4, atol=0.0)
    strides = {value.stride()[1] for value in weights.values() if value.ndim == 4}
    assert strides == {9}, "channels stand apart"


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16_features", 0.01), ("bf16", 0.03)])
def test_reduced_precision_is_near_and_adds_up_in_full(
    exact: tuple[Tensor, dict[str, Tensor]], precision: str, tolerance: float
) -> None:
    losses, weights = train_toys(precision=precision)
    assert not torch.equal(losses, exact[0])
    torch.testing.assert_close(losses, exact[0], rtol=tolerance, atol=0.0)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_reduced_features_come_back_in_single_precision() -> None:
    bench = Bench(precision="bf16_features")
    assert isinstance(bench.recipe.features, ReducedFeatures)
    images = torch.rand(2, 1, 16, 24) * 2 - 1
    found = bench.recipe.features(images, ["relu1_2"])["relu1_2"]
    whole = bench.recipe.features.features(images, ["relu1_2"])["relu1_2"]
    assert found.dtype == torch.float32
    assert 0 < (found - whole).abs().mean() < 0.01 * whole.abs().mean()


def make_cache(limit_bytes: int = 2**20, **images: Any) -> TargetCache:
    acceleration = {"target_cache_bytes": limit_bytes}
    return TargetCache(make_settings(acceleration=acceleration, images=images), image_count=5)


def features_of(places: np.ndarray) -> Callable[[], Features]:
    """Features that say whose they are: (n, 2, 3, 4), each filled with its place."""
    filled = torch.from_numpy(places).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 4)
    return lambda: {"relu1_2": filled.contiguous(memory_format=torch.channels_last)}


def refuse() -> Features:
    pytest.fail("known features are computed again")


def test_features_are_computed_once_a_stage() -> None:
    cache = make_cache()
    for places in ([3, 0, 1], [4, 2, 3]):
        cache.look_up(np.array(places), STEADY, features_of(np.array(places)))
    known = cache.look_up(np.array([2, 0]), STEADY, refuse)
    assert known is not None
    assert known["relu1_2"][:, 1, 2, 3].tolist() == [2.0, 0.0]
    assert known["relu1_2"].is_contiguous(memory_format=torch.channels_last)
    later = GrowthState(32, "stabilize", None, 2, 0, 3)
    again = cache.look_up(np.array([2, 0]), later, features_of(np.array([7, 8])))
    assert again is not None
    assert again["relu1_2"][:, 0, 0, 0].tolist() == [7.0, 8.0]


def test_features_that_do_not_fit_are_left_to_the_steps_of_their_stage() -> None:
    cache, places = make_cache(limit_bytes=5 * 24 * 4 - 1), np.array([1, 2])
    assert cache.look_up(places, STEADY, features_of(places)) is not None  # computed already
    assert cache.look_up(places, STEADY, refuse) is None
    found = cache.look_up(places, GrowthState(32, "stabilize", None, 2, 0, 3), features_of(places))
    assert found is not None
    assert found["relu1_2"][:, 0, 0, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("images", "growth"),
    [({"flips_at_random": True}, STEADY), ({"crops_at_random": True}, STEADY), ({}, FADING)],
)
def test_what_moves_is_not_kept(images: dict[str, bool], growth: GrowthState) -> None:
    assert make_cache(**images).look_up(np.array([1]), growth, refuse) is None


def half(target: Tensor, alpha: Alpha, features: Features | None) -> Losses:
    return {"half": (target * (0.0 if alpha is None else alpha)).relu().sum()}


def test_a_fade_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def count(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda it, **_: plain(it, backend=count, dynamic=False))
    objective, target = compile_objective(half, CPU), torch.tensor([[1.0, -2.0, 3.0]])
    assert [objective(target, alpha, None)["half"] for alpha in (0.25, 0.5, 1.0)] == [1.0, 2.0, 4.0]
    assert len(compiled) == 1


@pytest.mark.slow
def test_a_compiled_training_is_near(
    exact: tuple[Tensor, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.compile  # all of it but the writing of machine code, which takes a minute
    monkeypatch.setattr(torch, "compile", lambda it, **_: plain(it, backend="aot_eager"))
    losses, _ = train_toys(acceleration={"compiles_steps": True})
    torch.testing.assert_close(losses, exact[0], rtol=1e-4, atol=0.0)


@its_own_warning
def test_a_missing_compiler_is_named() -> None:
    objective, target = compile_objective(half, CPU), torch.tensor([[1.5, -2.0]])
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "/no/compiler")}),
        pytest.raises(SettingsError, match=r"acceleration\.compiles_steps: .*compiler.* off"),
    ):
        objective(target, 2.0, None)


def test_a_gpu_that_nothing_can_be_compiled_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TritonMissing(None)

    monkeypatch.setattr(torch, "compile", lambda _, **__: fail)
    with pytest.raises(SettingsError, match="Triton"):
        compile_objective(half, CPU)(torch.tensor([[1.5, -2.0]]), 2.0, None)
