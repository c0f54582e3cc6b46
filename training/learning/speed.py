"""The switches that make a step fast: what each of `AccelerationSettings` does, all in one place.

None of them makes a step wait for the device. What each gains, and by how much it moves the
loss, is measured by `python -m benchmarks.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._dynamo.exc import ShortenTraceback
from torch.nn.utils import convert_conv2d_weight_memory_format

from pipeline.errors import SettingsError
from pipeline.runtime.malloc import set_freed_memory
from training.networks.growth import GrowthState
from training.settings import AccelerationSettings, TrainSettings

Alpha: TypeAlias = float | Tensor | None
Features: TypeAlias = Mapping[str, Tensor]
Losses: TypeAlias = Mapping[str, Tensor]  # scalars, by the names that they are reported under
Objective: TypeAlias = Callable[[Tensor, Alpha, Features | None], Losses]
Places: TypeAlias = NDArray[np.int64]
Network = TypeVar("Network", bound=nn.Module)


def lay_out(network: Network, settings: AccelerationSettings) -> Network:
    """Keep a network's weights as its convolutions read them fastest."""
    if not settings.uses_channels_last:
        return network
    laid_out: Network = convert_conv2d_weight_memory_format(network, torch.channels_last)
    return laid_out


def choose_memory_format(settings: AccelerationSettings) -> torch.memory_format:
    """How images lie in memory."""
    return torch.channels_last if settings.uses_channels_last else torch.contiguous_format


def settle_freed_memory(settings: AccelerationSettings, device: torch.device) -> None:
    """Say for the whole process whether memory that tensors leave stays, if they lie on the host.

    A GPU's memory is PyTorch's own to keep.
    """
    if device.type == "cpu":
        set_freed_memory(is_kept=settings.keeps_freed_memory)


class TargetCache:
    """Features of training images, kept where nothing moves them from one epoch to the next.

    Args:
        settings: Of the training.
        image_count: Number of training images.
    """

    def __init__(self, settings: TrainSettings, image_count: int) -> None:
        self._limit_bytes = settings.acceleration.target_cache_bytes
        self._is_augmented = settings.images.crops_at_random or settings.images.flips_at_random
        self._image_count = image_count
        self._forget(stage_index=-1)

    def _forget(self, stage_index: int) -> None:
        self._stage_index = stage_index
        self._is_too_large = False
        self._is_known = np.zeros(self._image_count, bool)
        self._kept: dict[str, Tensor] = {}

    def look_up(
        self, places: Places, growth: GrowthState, compute: Callable[[], Features]
    ) -> Features | None:
        """Features of a batch; None where an augmentation or a fade moves them, or they are many.

        Args:
            places: (n,) which of the training images they are.
            growth: A new stage has other features.
            compute: Makes the features of this very batch, each (n, C, H, W).
        """
        if not self._limit_bytes or self._is_augmented or growth.phase == "fade_in":
            return None
        if growth.stage_index != self._stage_index:
            self._forget(growth.stage_index)
        if self._is_too_large:
            return None
        if self._is_known[places].all():
            return {
                name: kept[_on_device(places, kept.device)] for name, kept in self._kept.items()
            }
        with torch.no_grad():
            found = compute()
        needed = sum(values[0].nbytes for values in found.values()) * self._image_count
        self._is_too_large = needed > self._limit_bytes
        if not self._is_too_large:
            self._keep(places, found)
        return found

    def _keep(self, places: Places, found: Features) -> None:
        for name, values in found.items():
            if name not in self._kept:
                # As they lie in memory, so that a sum over them keeps its order, and its bits.
                shape = (self._image_count, *values.shape[1:])
                self._kept[name] = torch.empty(
                    shape,
                    dtype=values.dtype,
                    device=values.device,
                    memory_format=find_memory_format(values),
                )
            self._kept[name][_on_device(places, values.device)] = values
        self._is_known[places] = True


def compile_objective(objective: Objective, device: torch.device) -> Objective:
    """Compile the objective of a stage; on GPUs it becomes CUDA graphs.

    What was compiled for an earlier stage is dropped. A call raises `SettingsError` where there
    is no compiler, no Triton, or too old a GPU.
    """
    torch.compiler.reset()
    mode = "reduce-overhead" if device.type == "cuda" else None
    run: Objective = torch.compile(objective, mode=mode, dynamic=False)

    def call(target: Tensor, alpha: Alpha, target_features: Features | None) -> Losses:
        if alpha is not None:
            # A number would be compiled in, and every step of a fade compiled anew.
            alpha = torch.full((), float(alpha), device=target.device)
        try:
            return run(target, alpha, target_features)
        except ShortenTraceback as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(
                "acceleration.compiles_steps", reason, "Install what is missing, or leave it off"
            ) from error

    return call


def find_memory_format(values: Tensor) -> torch.memory_format:
    """How (N, C, H, W) lies in memory."""
    is_last = values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _on_device(places: Places, device: torch.device) -> Tensor:
    return torch.from_numpy(places).to(device, non_blocking=True)
