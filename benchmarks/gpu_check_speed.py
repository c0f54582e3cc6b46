"""Items of the GPU check: rates of the card, and how much of them training and scoring reach.

The card's rate is that of large matrix products in bfloat16, measured in the same process as what
is compared with it. Two aims are set: half of that rate in the feature network, and ten times the
published step at 64 px. Missing an aim is shown, and fails no item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_check_cases import make_detector, paint
from benchmarks.gpu_check_environment import lacks_for_compiling
from benchmarks.gpu_check_item import Found, Setup
from benchmarks.harness import Method, compare
from benchmarks.training import (
    COMPILED,
    ON_GPU,
    OURS,
    REDUCED,
    REFERENCE,
    WAYS,
    Case,
    compare_steps,
    conclude,
    count_flops,
    time_calls,
)
from training.networks.inputs import to_tensor
from training.networks.precision import ReducedFeatures, set_tf32
from training.networks.reconstruction import reconstruct
from training.networks.vgg import layer_at
from training.networks.vgg_weights import load_vgg
from training.scoring.detector import Detector

AIM_OF_FEATURES: Final = 0.5
AIM_OF_TRAINING: Final = 10.0
_REFERENCE_BATCH: Final = 32
_TERA: Final = 1e12


def measure_card(setup: Setup) -> Found:
    """Measure matrix products in bfloat16, TF32 and float32, and copies in the card's memory."""
    figures = {
        "bf16_tflops": measure_rate(setup, torch.bfloat16),
        "tf32_tflops": measure_rate(setup, torch.float32, allows_tf32=True),
        "fp32_tflops": measure_rate(setup, torch.float32),
        "copied_gb_per_s": _measure_copies(setup),
    }
    says = (
        "products in bfloat16 {bf16_tflops:.3g}, TF32 {tf32_tflops:.3g}, float32 "
        "{fp32_tflops:.3g} TFLOP/s; copies {copied_gb_per_s:.3g} GB/s read and written"
    )
    return Found(says.format(**figures), figures)


def measure_rate(setup: Setup, dtype: torch.dtype, *, allows_tf32: bool = False) -> float:
    """Measure large matrix products of random factors, in TFLOP/s; the median of several rounds.

    Args:
        setup: Device, and how large.
        dtype: Type of the factors.
        allows_tf32: Whether float32 may be rounded to TF32.
    """
    set_tf32(is_allowed=allows_tf32)
    size, repeats = (384, 2) if setup.is_small else (8192, 10)
    one, other = (torch.randn(size, size, device=setup.device).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(one, other)

    seconds = _time(multiply, setup)
    set_tf32(is_allowed=False)
    return 2 * size**3 * repeats / seconds / _TERA


def _measure_copies(setup: Setup) -> float:
    size_bytes = 2**24 if setup.is_small else 2**30
    source = torch.randint(256, (size_bytes,), dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    return 2 * size_bytes / _time(lambda: target.copy_(source), setup) / 1e9


def _time(call: Callable[[], object], setup: Setup) -> float:
    """Median seconds of a call, after some to warm up."""
    rounds = 3 if setup.is_small or setup.is_quick else 7
    for _ in range(2):
        call()
    return median(time_calls(call, setup.device) for _ in range(rounds))


def measure_features(setup: Setup) -> Found:
    """Measure VGG19 as a training uses it, forward and backward to its input.

    The share is that of the card's rate in bfloat16, also of the ways in float32.
    """
    rate = measure_rate(setup, torch.bfloat16)
    figures = {"bf16_tflops": rate}
    sides = (16,) if setup.is_small else (64,) if setup.is_quick else (64, 256)
    for side in sides:
        for name, tflops in _time_features(setup, side).items():
            figures[f"{name}_{side}px_tflops"] = tflops
            figures[f"{name}_{side}px_share"] = tflops / rate
    shares = {name: value for name, value in figures.items() if name.endswith("_share")}
    best = max(shares, key=shares.__getitem__)
    says = f"{shares[best]:.2f} of the card's bfloat16 rate at best ({best}), aim {AIM_OF_FEATURES}"
    return Found(says, figures)


def _time_features(setup: Setup, side: int) -> dict[str, float]:
    """TFLOP/s of the feature network at a side in px, forward and backward, by way."""
    batch = 4 if setup.is_small else 128 if side <= 64 else 32
    layer = layer_at(side)
    plain = load_vgg("random", layers=[layer]).to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
    images = torch.rand(batch, 3, side, side, device=setup.device) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    reduced: Any = ReducedFeatures(plain)
    ways: dict[str, tuple[bool, Any]] = {
        "fp32": (False, plain),
        "tf32": (True, plain),
        "bf16": (False, reduced),
    }
    if setup.on_gpu and not setup.is_quick and lacks_for_compiling() is None:
        ways["bf16_compiled"] = (False, torch.compile(reduced, dynamic=False))
    found = {}
    for name, (allows_tf32, extract) in ways.items():
        set_tf32(is_allowed=allows_tf32)
        run = partial(_run_features, extract, layer, images)
        if name == "fp32":
            flops = count_flops(run)
        found[name] = flops / _time(run, setup) / _TERA
    set_tf32(is_allowed=False)
    return found


def _run_features(extract: Any, layer: str, images: Tensor) -> None:
    images.grad = None
    extract(images, [layer])[layer].sum().backward()


def measure_training(setup: Setup) -> Found:
    """Measure our step beside the published one, from equal weights, by every switch."""
    case = Case(16, 4, setup.device) if setup.is_small else Case(64, 128, setup.device)
    ways: dict[str, Mapping[str, Any]] = dict(WAYS)
    if setup.on_gpu:
        can_compile = not setup.is_quick and lacks_for_compiling() is None
        more = {**ON_GPU, **COMPILED}
        ways |= {name: way for name, way in more.items() if can_compile or "comp" not in name}
    rounds = 1 if setup.is_small else 5 if setup.is_quick else 15
    speed, differences, flops = compare_steps(case, ways, rounds=rounds)
    figures = conclude(speed, differences, flops, suffix=f"_{case.resolution}px")
    best = max(ways, key=speed.rate)
    figures["best_vs_reference"] = speed.ratio(best)
    figures["reference_images_per_s"] = speed.rate(REFERENCE)
    share = speed.ratio(REDUCED, f"limit of {REDUCED}")
    says = (
        f"{case.resolution} px: {speed.ratio(OURS):.2g} times the published step as it comes, "
        f"{speed.ratio(best):.2g} at best ({best}), aim {AIM_OF_TRAINING:g}; in bfloat16 "
        f"{share:.2f} of the card's rate"
    )
    return Found(says, figures)


def measure_scoring(setup: Setup) -> Found:
    """Measure images scored a second, from bytes in the host's memory, beside the reference's loop.

    The reference scores 32 at a time, channel after channel, in PyTorch's own precision.
    """
    make = partial(make_detector, setup.device, is_small=setup.is_small)
    ours, allowed = make(), make(acceleration={"allows_tf32": True})
    count = 32 if setup.is_small else 1024 if setup.is_quick else 4096
    images = paint(count, ours.description.image_shape, seed=6)
    ways: Mapping[str, Callable[[], object]] = {
        "reference": partial(score_as_published, make(), images),
        "ours": partial(ours.detect, images),
        "tf32": partial(allowed.detect, images),
        "bf16": partial(ours.reduce_precision().detect, images),
    }
    methods = [
        Method(name, partial(time_calls, way, setup.device), count, prepare=_use_defaults)
        for name, way in ways.items()
    ]
    rounds = 1 if setup.is_small else 3 if setup.is_quick else 7
    speed = compare("Scoring", methods, unit="images/s", rounds=rounds)
    tera_operations = count_flops(partial(ours.detect, images[:32])) / 32 / _TERA  # an image's
    rate = measure_rate(setup, torch.bfloat16)
    figures = {f"{name}_images_per_s": speed.rate(name) for name in ways}
    figures |= {f"{name}_vs_reference": speed.ratio(name) for name in ways if name != "reference"}
    figures |= {f"{name}_share": speed.rate(name) * tera_operations / rate for name in ways}
    each = ", ".join(f"{name} {speed.ratio(name):.2g}" for name in ways if name != "reference")
    says = (
        f"{speed.rate('ours'):,.0f} images/s; times the reference's loop: {each}; in bfloat16 "
        f"{figures['bf16_share']:.2f} of the card's rate"
    )
    return Found(says, figures)


@torch.inference_mode()
def score_as_published(detector: Detector, images: NDArray[np.uint8]) -> None:
    """Score as the reference's loop does.

    Args:
        detector: Detector that nothing else uses, as its channels are laid out anew.
        images: uint8 (N, H, W, C) of the detector's shape.
    """
    for module in (detector.autoencoder, detector.features):
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # torch's stub lacks it
    final = detector.description.settings.growth.final_resolution
    for first in range(0, len(images), _REFERENCE_BATCH):
        part = images[first : first + _REFERENCE_BATCH]
        shown = to_tensor(part, resolution=final, device=detector.device)
        made = reconstruct(detector.autoencoder, shown, detector.growth)
        made.compare(detector.loss).reduce("none").cpu()


def _use_defaults() -> None:
    """Give float32 PyTorch's own precision, for the reference; ours chooses for itself."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
