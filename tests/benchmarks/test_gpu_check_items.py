"""The items of the GPU check: on a processor all is well, and what is broken is found."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    gpu_check_compiled,
    gpu_check_environment,
    gpu_check_numerics,
    gpu_check_speed,
    gpu_check_training,
)
from benchmarks.gpu_check_cases import SHAPE, make_dataset, make_detector, paint
from benchmarks.gpu_check_item import Found, Setup, list_excesses
from benchmarks.training import Case
from training.data import image_cache
from training.learning import checkpoint
from training.learning.speed import TargetCache
from training.networks.precision import set_tf32
from training.networks.vgg_weights import load_vgg
from training.scoring.detector import Detector

SETUP = Setup("cpu", is_quick=True)
NARROW = load_vgg("random", layers=["relu4_2"], width=8)
CHECKS = [
    gpu_check_numerics.check_tf32_switch,
    gpu_check_numerics.check_features,
    gpu_check_numerics.check_steps,
    gpu_check_numerics.check_scoring,
    gpu_check_training.check_images_on_device,
    gpu_check_training.check_target_cache,
    gpu_check_training.check_training_loop,
    gpu_check_training.check_process_group,
    gpu_check_speed.measure_card,
    gpu_check_speed.measure_features,
    gpu_check_speed.measure_scoring,
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_tf32(is_allowed=False)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_item_passes_on_a_processor(check: Callable[[Setup], Found]) -> None:
    found = check(SETUP).judge()
    assert not found.problems
    assert found.says
    numbers = [figure for figure in found.figures.values() if not isinstance(figure, str)]
    assert numbers
    assert all(math.isfinite(number) for number in numbers)


@pytest.mark.slow
def test_the_training_is_measured_beside_the_published_one() -> None:
    figures = gpu_check_speed.measure_training(SETUP).figures
    as_it_comes, best = figures["vs_reference_16px"], figures["best_vs_reference"]
    assert isinstance(as_it_comes, float)
    assert isinstance(best, float)
    assert 0 < as_it_comes <= best


def test_getters_that_the_newer_switches_break_are_found() -> None:
    """In a process of its own, as they stay broken."""
    code = """
import torch
from benchmarks.gpu_check_numerics import list_broken_getters
torch.backends.cuda.matmul.fp32_precision = "ieee"
torch.backends.cudnn.conv.fp32_precision = "ieee"
print(*list_broken_getters(is_allowed=False), sep="\\n")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch.backends.cudnn.allow_tf32 with TF32 False: PyTorch" in said.stdout
    assert "torch.backends.cudnn.flags" in said.stdout


def make_another_detector(device: Any, *, is_small: bool, **changes: Any) -> Detector:
    """The same as expected on the processor, another where it is checked."""
    seed = {} if device == "cpu" else {"seed": 1}
    return make_detector(device, is_small=is_small, **changes, **seed)


def flip(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose tensors come back in the wrong order."""

    def flipped(*arguments: Any, **how: Any) -> Any:
        found = function(*arguments, **how)
        if isinstance(found, dict):
            return {name: value.flip(0) for name, value in found.items()}
        return found if found is None else found.flip(0)

    return flipped


@pytest.mark.parametrize(
    ("check", "place", "name", "broken", "problem"),
    [
        (
            gpu_check_numerics.check_scoring,
            gpu_check_numerics,
            "make_detector",
            make_another_detector,
            "float32 is ",
        ),
        (
            gpu_check_training.check_images_on_device,
            image_cache.DeviceImages,
            "read_views",
            flip(image_cache.DeviceImages.read_views),
            "the batch at sample 24 differs",
        ),
        (
            gpu_check_training.check_target_cache,
            TargetCache,
            "look_up",
            flip(TargetCache.look_up),
            "kept features come back as others",
        ),
        (
            gpu_check_training.check_training_loop,
            checkpoint,
            "_restore_optimiser",
            lambda *_: None,
            "continued is ",
        ),
        (
            gpu_check_training.check_process_group,
            gpu_check_training,
            "_gather",
            lambda array: [array * 1.1],
            "loss is 0.1",
        ),
    ],
    ids=["scoring", "images", "targets", "checkpoint", "workers"],
)
def test_what_is_broken_is_found(
    check: Callable[[Setup], Found],
    place: Any,
    name: str,
    broken: Callable[..., Any],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place, name, broken)
    found = check(SETUP).judge()
    assert found.state == "failed"
    assert any(each.startswith(problem) for each in found.problems), found.problems


def test_an_optimiser_that_is_not_fused_is_found() -> None:
    """On a processor none is; gradients, weights and what is stored are the same."""
    found = gpu_check_training.check_fused_optimiser(SETUP)
    assert found.problems == ["the optimiser is not fused"]
    assert found.figures == {"fused": 0.0, "stored": 0.0}


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, *, at_images: int) -> Found:
    """The item on a processor, whose convolutions hold fewer images than it asks for."""
    convolve = torch.nn.Conv2d.forward

    def run_out(self: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if len(images) > at_images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return convolve(self, images)

    monkeypatch.setattr(gpu_check_training, "_TOO_MANY", 8)
    monkeypatch.setattr(gpu_check_training, "_take_memory", lambda _: torch.empty(0))
    monkeypatch.setattr(Case, "make_features", lambda _: NARROW)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", run_out)
    return gpu_check_training.check_out_of_memory(SETUP)


@pytest.mark.parametrize(
    ("at_images", "problem"),
    [(3, ""), (0, "no batch is named, or a step was counted"), (8, "a step of 8 images fits")],
)
def test_the_advice_is_followed(
    at_images: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_out_of_memory(monkeypatch, at_images=at_images)
    assert "".join(found.problems).startswith(problem)
    if not problem:
        assert found.figures["advised_images"] == 2
        assert not found.problems


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "CC", "CXX"):  # which the item changes, in its own process elsewhere
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(gpu_check_compiled, "lacks_for_compiling", lambda: None)
    found = gpu_check_compiled.check_missing_compiler(SETUP)
    assert found.says.startswith("acceleration.compiles_steps: ")
    assert not found.problems


@pytest.mark.parametrize("function", ["check_missing_compiler", "check_compiled_steps"])
def test_without_triton_nothing_is_compiled(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_environment, "find_spec", lambda _: None)
    found = getattr(gpu_check_compiled, function)(Setup("cuda", is_quick=True))
    assert (found.state, found.says) == ("skipped", "Triton is not installed")


def test_a_card_that_pytorch_cannot_use_is_no_machine_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_check_environment, "ask_driver", lambda _: ["NVIDIA H100 80GB HBM3"])
    found = gpu_check_environment.describe_environment(SETUP).judge()
    assert found.state == "failed"
    assert "lists NVIDIA H100 80GB HBM3, which PyTorch" in found.problems[0]


def test_an_old_pytorch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    found = gpu_check_environment.describe_environment(SETUP)
    assert found.problems == ["PyTorch is 2.9.1+cu128: 2.11 or later is needed"]
    assert found.figures["device"] == "cpu"


def test_a_figure_that_is_no_number_is_too_much() -> None:
    found = list_excesses({"loss": math.nan, "score": 0.1}, {"loss": 1.0, "score": 0.2, "map": 0})
    assert found == ["loss is nan, more than 1"]


def test_the_dataset_of_the_items_is_whole() -> None:
    dataset = make_dataset(normals=20, validation=3)
    assert dataset.image_count == 26
    assert dataset.image_shape == SHAPE
    painted = paint(20, SHAPE, seed=1)
    assert np.array_equal(dataset.read_images(0, 20), painted)
    assert dataset.column("label").tolist() == [0] * 23 + [1] * 3


def test_products_are_timed_by_their_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check_speed, "time_calls", lambda call, _: call() or 0.5)
    rate = gpu_check_speed.measure_rate(SETUP, torch.float32)
    assert rate == pytest.approx(2 * 384**3 * 2 / 0.5 / 1e12)
