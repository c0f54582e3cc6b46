"""Items of the GPU check: what TF32, bfloat16 and the GPU itself do to the numbers."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.gpu_check_cases import differ, differ_most, make_detector, paint
from benchmarks.gpu_check_item import Found, Setup, list_excesses
from benchmarks.training import Case, make_reference, make_step
from training.networks.precision import ReducedFeatures, set_tf32
from training.networks.vgg import VggFeatures, layer_at
from training.networks.vgg_weights import load_vgg

_TF32_CARD: Final = 8  # major compute capability: Ampere
# A product of random factors in float32 differs from float64 by 1e-6, in TF32 by 3e-4.
_ROUNDED_BY: Final = (5e-5, 5e-3)
_STEPS: Final = 3


def check_tf32_switch(setup: Setup) -> Found:
    """Switch TF32 on and off: PyTorch's getters answer, and products are rounded or not."""
    problems: list[str] = []
    figures: dict[str, float] = {}
    for is_allowed in (False, True, False):
        set_tf32(is_allowed=is_allowed)
        problems += list_broken_getters(is_allowed=is_allowed)
        state = "on" if is_allowed else "off"
        for name, measure in (("product", _round_product), ("convolution", _round_convolution)):
            figures[f"{name}_{state}"] = measure(setup)
    problems += list_excesses(
        figures, {f"{name}_off": _ROUNDED_BY[0] for name in ("product", "convolution")}
    )
    if setup.on_gpu and torch.cuda.get_device_capability()[0] >= _TF32_CARD:
        least, most = _ROUNDED_BY
        problems += [
            f"{name} with TF32 differs by {figures[name]:.2g}, not by {least:g} to {most:g}"
            for name in ("product_on", "convolution_on")
            if not least <= figures[name] <= most
        ]
    says = ", ".join(f"{name.replace('_', ' ')} {value:.1g}" for name, value in figures.items())
    return Found(f"getters answer; off from float64: {says}", figures, problems)


def list_broken_getters(*, is_allowed: bool) -> list[str]:
    """List the getters of PyTorch that raise, or say something else than was chosen.

    Args:
        is_allowed: Choice that was made: whether TF32 is allowed.
    """
    getters: Mapping[str, tuple[Callable[[], object], object]] = {
        "backends.cudnn.allow_tf32": (lambda: torch.backends.cudnn.allow_tf32, is_allowed),
        "backends.cuda.matmul.allow_tf32": (
            lambda: torch.backends.cuda.matmul.allow_tf32,
            is_allowed,
        ),
        "get_float32_matmul_precision": (
            torch.get_float32_matmul_precision,
            "high" if is_allowed else "highest",
        ),
        "backends.cudnn.flags": (_use_flags, is_allowed),
    }
    problems = []
    for name, (ask, expected) in getters.items():
        try:
            answer = ask()
        except RuntimeError as error:
            answer = str(error).partition("\n")[0]
        if answer != expected:
            problems.append(f"torch.{name} with TF32 {is_allowed}: {answer}, not {expected}")
    return problems


def _use_flags() -> bool:
    """Enter and leave cuDNN's flags, which restores them."""
    with torch.backends.cudnn.flags(enabled=True):
        pass
    return torch.backends.cudnn.allow_tf32


def _round_product(setup: Setup) -> float:
    size = 256 if setup.is_small else 2048
    one, other = (_draw((size, size), setup, seed) for seed in (0, 1))
    return differ(one @ other, one.double() @ other.double())


def _round_convolution(setup: Setup) -> float:
    side = 8 if setup.is_small else 32
    maps, kernel = _draw((4, 64, side, side), setup, 2), _draw((64, 64, 3, 3), setup, 3)
    exact = torch.conv2d(maps.double(), kernel.double(), padding=1)
    return differ(torch.conv2d(maps, kernel, padding=1), exact)


def _draw(shape: tuple[int, ...], setup: Setup, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(setup.device)


@torch.inference_mode()
def check_features(setup: Setup) -> Found:
    """Compare VGG19's features in float32, TF32 and bfloat16 with float64 on the processor."""
    side, count = (16, 2) if setup.is_small else (64, 8)
    layer = layer_at(side)
    images = _draw((count, 3, side, side), setup, 4).clamp(-1, 1)
    exact = _extract(load_vgg("random", layers=[layer]).double(), images.cpu().double())
    plain = load_vgg("random", layers=[layer]).to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    seen = images.contiguous(memory_format=torch.channels_last)
    ways: Mapping[str, tuple[bool, VggFeatures | ReducedFeatures]] = {
        "float32": (False, plain),
        "tf32": (True, plain),
        "bf16": (False, ReducedFeatures(plain)),
    }
    figures: dict[str, float] = {}
    for name, (is_allowed, extractor) in ways.items():
        set_tf32(is_allowed=is_allowed)
        found = _extract(extractor, seen)
        figures[name] = differ(found, exact)
        figures[f"{name}_largest"] = differ_most(found, exact)
    set_tf32(is_allowed=False)
    problems = list_excesses(figures, {"float32": 1e-4, "tf32": 5e-3, "bf16": 5e-2})
    says = f"{layer} off from float64, on the whole and at most:"
    each = (f"{name} {figures[name]:.1g} {figures[f'{name}_largest']:.1g}" for name in ways)
    return Found(f"{says} {', '.join(each)}", figures, problems)


def _extract(extractor: VggFeatures | ReducedFeatures, images: Tensor) -> Tensor:
    found: Mapping[str, Tensor] = extractor(images)
    (features,) = found.values()
    return features


def check_steps(setup: Setup) -> Found:
    """Compare the losses of a few steps with the published step in float32 on the processor."""
    side, batch = (16, 4) if setup.is_small else (64, 32)
    on_cpu, here = (Case(side, batch, torch.device(name)) for name in ("cpu", setup.device_type))
    set_tf32(is_allowed=False)
    published, images = make_reference(on_cpu), on_cpu.draw_images()
    expected = torch.tensor([published(images) for _ in range(_STEPS)], dtype=torch.float64)
    ways: Mapping[str, tuple[Mapping[str, Any], float]] = {
        "float32": ({}, 1e-3),
        "tf32": ({"acceleration": {"allows_tf32": True}}, 1e-2),
        "bf16_features": ({"precision": "bf16_features"}, 3e-2),
        "bf16": ({"precision": "bf16"}, 3e-2),
    }
    figures: dict[str, float] = {}
    for name, (changes, _) in ways.items():
        step = make_step(here, changes)  # chooses TF32 for the process too
        losses = torch.tensor([float(step()) for _ in range(_STEPS)], dtype=torch.float64)
        figures[name] = float((losses / expected - 1).abs().max())
    set_tf32(is_allowed=False)
    problems = list_excesses(figures, {name: limit for name, (_, limit) in ways.items()})
    each = ", ".join(f"{name} {value:.1g}" for name, value in figures.items())
    return Found(f"losses of {_STEPS} steps of {side} px, relative: {each}", figures, problems)


def check_scoring(setup: Setup) -> Found:
    """Compare scores with those of the processor, in float32, TF32 and bfloat16, and pickled."""
    expected = make_detector("cpu", is_small=setup.is_small)
    images = paint(16, expected.description.image_shape, seed=5)
    exact = expected.detect(images, heatmaps=True)
    here = make_detector(setup.device, is_small=setup.is_small)
    allowed = make_detector(
        setup.device, is_small=setup.is_small, acceleration={"allows_tf32": True}
    )
    figures: dict[str, float] = {}
    ways = {"float32": here, "tf32": allowed, "bf16": here.reduce_precision()}
    for name, detector in ways.items():
        found = detector.detect(images, heatmaps=True)
        figures[name] = _differ_most(found.anomaly_score, exact.anomaly_score)
        figures[f"{name}_heatmap"] = _differ_most(found.heatmap, exact.heatmap)
    again = pickle.loads(pickle.dumps(here))  # noqa: S301  # made in this line
    figures["pickled"] = _differ_most(again.detect(images).anomaly_score, exact.anomaly_score)
    limits = {"float32": 1e-4, "tf32": 1e-2, "bf16": 3e-2, "pickled": 1e-4}
    problems = list_excesses(figures, limits)
    if again.device.type != setup.device_type:
        problems.append(f"a detector pickled and unpickled scores on {again.device}")
    each = ", ".join(f"{name} {figures[name]:.1g}" for name in limits)
    return Found(f"scores off from the processor's: {each}", figures, problems)


def _differ_most(found: Any, expected: Any) -> float:
    """Largest difference relative to the root mean square; arrays of NumPy."""
    return differ_most(torch.from_numpy(found), torch.from_numpy(expected))
