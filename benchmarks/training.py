"""Images trained a second: the published step, ours switch by switch, and the processor's limit.

One step of the preset `nih-subset-paper`, stabilized at 16, 32 and 64 px, by the published modules
(`benchmarks.published`) and by ours, from equal weights on equal images; the losses of the first
steps must agree before anything is timed, in full single precision where no switch says otherwise.
Timed, the published step has PyTorch's own default, on GPUs TF32 in convolutions; ours has it
where its switch says so. VGG19's weights are random, which costs what trained
ones cost. Target features are kept, as they are from the second epoch of a stage on, where
nothing augments the images.

On a processor one thread is timed by the time that it really computes, so that other programs
do not count. The limit is the rate of a step of which all FLOPs run like those of the operation
that fills the device best: on processors a convolution of 256 to 256 channels, which here does
more than a matrix product (2.4 times as much in single precision, as the product's library does
not use all of the processor); on GPUs a matrix product in bfloat16 or single precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Comparison, Method, Outcome, compare, run_benchmark
from benchmarks.published import (
    PublishedStep,
    Vgg,
    load_published_weights,
    make_decoder,
    make_encoder,
)
from pipeline.runtime.malloc import set_freed_memory
from training.learning.loop import train_step
from training.learning.speed import TargetCache
from training.learning.state import begin_training, make_recipe
from training.networks.losses import add_up
from training.networks.precision import set_tf32
from training.networks.vgg import VggFeatures, convolutions_needed, layer_at, measure_statistics
from training.networks.vgg_weights import load_vgg
from training.presets import load_preset

REFERENCE, OURS, REDUCED = "published", "ours", "ours, all in bf16"
_SWITCHES: Final = {
    "uses_channels_last": False,
    "keeps_freed_memory": False,
    "target_cache_bytes": 0,
}
OFF: Final[Mapping[str, Any]] = {"acceleration": _SWITCHES}
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "switches off": OFF,
    "channels last": {"acceleration": {**_SWITCHES, "uses_channels_last": True}},
    "and freed memory kept": {"acceleration": {"target_cache_bytes": 0}},
    OURS: {},
    "ours, VGG19 in bf16": {"precision": "bf16_features"},
    REDUCED: {"precision": "bf16"},
}
"""Ours, by default, has channels last, freed memory and target features kept."""
COMPILED: Final = {"ours, compiled": {"acceleration": {"compiles_steps": True}}}
ON_GPU: Final[Mapping[str, Mapping[str, Any]]] = {
    "ours, TF32": {"acceleration": {"allows_tf32": True}},
    "ours, all in bf16, compiled": {"precision": "bf16", "acceleration": {"compiles_steps": True}},
}
_CHECKED_STEPS: Final = 2
_TOLERANCE: Final = 1e-4  # relative, of the loss after one step of Adam


@dataclass(frozen=True)
class Case:
    """What is trained on.

    Args:
        resolution: Side of the images in px.
        batch: Images a step.
        device: Device that the step runs on.
    """

    resolution: int
    batch: int
    device: torch.device

    def settings(self, changes: Mapping[str, Any]) -> Any:
        """Of this one stage."""
        return load_preset(
            "nih-subset-paper",
            {
                "growth": {
                    "initial_resolution": self.resolution,
                    "final_resolution": self.resolution,
                    "stabilize_iterations": 1_000_000,
                    "batch_sizes": self.batch,
                },
                "network": {"channels": 16},
                "loss": {"layers": {self.resolution: {self.layer: 1.0}}, "vgg_weights": "random"},
            },
            changes,
        )

    @property
    def layer(self) -> str:
        """The layer compared."""
        return layer_at(self.resolution)

    def draw_images(self) -> Tensor:
        """Smooth noise (batch, 1, resolution, resolution)."""
        generator = torch.Generator().manual_seed(self.resolution)
        coarse = torch.rand((self.batch, 1, 8, 8), generator=generator) * 2 - 1
        size = (self.resolution, self.resolution)
        return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").to(self.device)

    def make_features(self) -> VggFeatures:
        """Random weights, normalised by what they give."""
        features = load_vgg("random", layers=[self.layer])
        features.normalize_by(measure_statistics(features, [self.draw_images()[:32].cpu()]))
        return features


def make_reference(case: Case) -> PublishedStep:
    """The published step at its first."""
    torch.manual_seed(0)
    settings = case.settings({})
    widths = {"image": 1, "width": 16, "latent": settings.network.latent_channels}
    encoder, decoder = (make(case.resolution, **widths) for make in (make_encoder, make_decoder))
    vgg = Vgg(case.make_features().state_dict(), convolutions_needed([case.layer]))
    modules = (encoder.to(case.device), decoder.to(case.device), vgg.to(case.device))
    return PublishedStep(*modules, learning_rate=settings.optimiser.learning_rate)


def make_step(case: Case, changes: Mapping[str, Any]) -> Callable[[], Tensor]:
    """Our step, from the weights that the published one begins with."""
    settings, reference = case.settings(changes), make_reference(case)
    recipe = make_recipe(settings, case.make_features(), image_channels=1, device=case.device)
    state = begin_training(recipe)
    load_published_weights(
        state.autoencoder,
        encoder=reference.encoder.state_dict(),
        decoder=reference.decoder.state_dict(),
    )
    targets = TargetCache(settings, case.batch)
    places, images = np.arange(case.batch), case.draw_images()
    return lambda: add_up(train_step(recipe, state, images, places=places, targets=targets))


def compare_steps(
    case: Case, ways: Mapping[str, Mapping[str, Any]], *, rounds: int
) -> tuple[Comparison, dict[str, float], dict[str, float]]:
    """Check the losses, then let the steps take turns with the limits.

    Returns:
        The speeds, each way's relative difference of the loss, and the FLOPs of an image.
    """
    steps: dict[str, Callable[[], object]] = {
        REFERENCE: partial(make_reference(case), case.draw_images()),
        **{name: make_step(case, changes) for name, changes in ways.items()},
    }
    first = {}
    for name, step in steps.items():
        set_tf32(is_allowed=_allows_tf32(ways.get(name, OFF)))
        first[name] = [float(step()) for _ in range(_CHECKED_STEPS)]  # type: ignore[arg-type] # a number or a tensor of one
    differences = {name: _differ(losses, first[REFERENCE]) for name, losses in first.items()}
    for name in ("switches off", OURS):
        if differences[name] > _TOLERANCE:
            raise RuntimeError(f"{name}: the loss differs by {differences[name]:.2g}: not compared")
    flops = {name: count_flops(steps[name]) / case.batch for name in (OURS, REDUCED)}
    speed = compare(
        f"A step of {case.batch} images of {case.resolution} px, VGG19 to {case.layer}",
        [
            *(make_method(name, step, case, ways.get(name, OFF)) for name, step in steps.items()),
            make_limit(f"limit of {OURS}", torch.float32, flops[OURS], case.device),
            make_limit(f"limit of {REDUCED}", torch.bfloat16, flops[REDUCED], case.device),
        ],
        unit="images/s",
        rounds=rounds,
        warm_ups=0,
    )
    return speed, differences, flops


def make_method(
    name: str, step: Callable[[], object], case: Case, changes: Mapping[str, Any]
) -> Method:
    """A step to be timed; what serves the whole process is told anew each time."""

    def prepare() -> None:
        set_freed_memory(is_kept=changes.get("acceleration", {}).get("keeps_freed_memory", True))
        if name == REFERENCE:
            torch.set_float32_matmul_precision("highest")  # PyTorch's own choices
            torch.backends.cudnn.allow_tf32 = True
        else:
            set_tf32(is_allowed=_allows_tf32(changes))

    return Method(name, partial(time_calls, step, case.device), case.batch, prepare=prepare)


def make_limit(name: str, dtype: torch.dtype, flops: float, device: torch.device) -> Method:
    """What fills the device, as many images a second as have its FLOPs."""
    if device.type == "cpu":
        maps, kernel = (
            torch.rand(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
            for shape in ((16, 256, 16, 16), (256, 256, 3, 3))
        )
        repeats, own_flops = 10, 2 * maps.numel() * 256 * 9
        fill = partial(torch.conv2d, maps, kernel, padding=1)
    else:
        one = torch.rand(8192, 8192, dtype=dtype, device=device)
        repeats, own_flops = 50, 2 * 8192**3
        fill = partial(torch.mm, one, one)

    def repeat() -> None:
        for _ in range(repeats):
            fill()

    exactly = partial(set_tf32, is_allowed=False)
    images = repeats * own_flops / flops
    return Method(name, partial(time_calls, repeat, device), images, prepare=exactly)


def time_calls(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: computed, on a processor; passed, on a GPU."""
    if device.type == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def count_flops(step: Callable[[], object]) -> float:
    """Multiplications and additions of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def measure(quick: bool) -> Outcome:
    """Every resolution; compiled steps at 16 px alone, as compiling takes long."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    batch, rounds = (32, 3) if quick and on_cpu else (128, 3 if on_cpu else 20)
    comparisons: list[Comparison] = []
    metrics: dict[str, float] = {}
    for resolution in (16, 32, 64) if on_cpu else (16, 32, 64, 128, 256):
        ways = {**WAYS, **({} if on_cpu else ON_GPU)}
        if resolution == 16 and on_cpu:
            ways |= COMPILED
        case = Case(resolution, batch, device)
        speed, differences, flops = compare_steps(case, ways, rounds=rounds)
        comparisons.append(speed)
        metrics |= conclude(speed, differences, flops, suffix=f"_{resolution}px")
    whole = {
        name.removesuffix("_64px"): value for name, value in metrics.items() if "_64px" in name
    }
    notes = [
        f"batches of {batch}; `_64px` and the figures without a suffix are the same",
        *(f"{name}: {value:.2g}" for name, value in metrics.items() if "difference" in name),
    ]
    return Outcome(comparisons, {**whole, **metrics, "batch": batch}, notes)


def conclude(
    speed: Comparison, differences: Mapping[str, float], flops: Mapping[str, float], *, suffix: str
) -> dict[str, float]:
    """Figures of one resolution: ratios, shares of the limit, each switch's gain and difference."""
    metrics = {
        "vs_reference": speed.ratio(OURS),
        "vs_reference_reduced": speed.ratio(REDUCED),
        "share_of_peak": speed.ratio(OURS, f"limit of {OURS}"),
        "share_of_peak_reduced": speed.ratio(REDUCED, f"limit of {REDUCED}"),
        "peak_gflops_fp32": speed.rate(f"limit of {OURS}") * flops[OURS] / 1e9,
        "peak_gflops_bf16": speed.rate(f"limit of {REDUCED}") * flops[REDUCED] / 1e9,
        "images_per_s": speed.rate(OURS),
    }
    for name, difference in differences.items():
        if name != REFERENCE:
            key = name.replace(",", "").replace(" ", "_").lower()
            metrics |= {f"gain_{key}": speed.ratio(name), f"difference_{key}": difference}
    return {name + suffix: value for name, value in metrics.items()}


def _allows_tf32(changes: Mapping[str, Any]) -> bool:
    return bool(changes.get("acceleration", {}).get("allows_tf32", False))


def _differ(losses: list[float], expected: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(one / other - 1) for one, other in zip(losses, expected, strict=True))


if __name__ == "__main__":
    run_benchmark("training", measure)
