"""What the switches of `AccelerationSettings` do.

None of them makes a step wait for the device. `python -m benchmarks.training` measures what each
gains and how much it changes the loss.
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


def use_channels_last(network: Network, settings: AccelerationSettings) -> Network:
    """Convert a network's weights to channels-last, if the settings ask for it."""
    if not settings.uses_channels_last:
        return network
    converted: Network = convert_conv2d_weight_memory_format(network, torch.channels_last)
    return converted


def choose_memory_format(settings: AccelerationSettings) -> torch.memory_format:
    """Choose the memory format of images."""
    return torch.channels_last if settings.uses_channels_last else torch.contiguous_format


def keep_freed_memory(settings: AccelerationSettings, device: torch.device) -> None:
    """Choose for the process whether memory that tensors free is kept, if they are on the host.

    PyTorch itself keeps the memory of a GPU.
    """
    if device.type == "cpu":
        set_freed_memory(is_kept=settings.keeps_freed_memory)


class TargetCache:
    """Cache of the training images' features, where they are the same in each epoch.

    Args:
        settings: Settings of the training, with the size limit of the cache.
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
        """Find a batch's features; None if they change between epochs, or are too large.

        Args:
            places: int64 (n,), positions of the images among all training images.
            growth: Stage of the training; each compares other features.
            compute: Computes the features of this batch, each (n, C, H, W).
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
                # The same memory format, so that a sum over them keeps its order and bits.
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
    """Find the memory format of (N, C, H, W)."""
    is_last = values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _on_device(places: Places, device: torch.device) -> Tensor:
    return torch.from_numpy(places).to(device, non_blocking=True)
