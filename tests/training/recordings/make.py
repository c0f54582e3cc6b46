"""Record our networks and losses: `python -m tests.training.recordings.make`.

Inputs and weights are waves rather than random numbers, so that they are the same everywhere.
Record anew only when a definition is meant to change; the recordings of the public code, where
they are at hand, say whether it may.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.networks.autoencoder import Autoencoder, mix_input
from training.networks.losses import Norm, PerceptualLoss, Reduction
from training.networks.vgg import VggFeatures, random_vgg_weights

Array = NDArray[np.float32]

NETWORKS: dict[str, dict[str, Any]] = {
    "residual18": {"form": "residual18", "latent_resolution": 4, "channels": (3, 4, 5)},
    "residual18_latent1": {"form": "residual18", "latent_resolution": 1, "channels": (3, 4, 5)},
    "residual9": {"form": "residual9", "latent_resolution": 4, "channels": (4, 3, 5)},
    "regular": {"form": "regular", "latent_resolution": 4, "channels": (5, 4, 3)},
    "regular_latent1": {"form": "regular", "latent_resolution": 1, "channels": (3, 4, 5)},
}
REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "sum", "pixelwise")
LAYERS = ("relu1_2", "relu2_1")


def wave(shape: tuple[int, ...], pace: float) -> Array:
    """Numbers in [-1, 1] that repeat nowhere."""
    phase = pace * np.arange(np.prod(shape), dtype=np.float64)
    return np.cos(phase + 0.1 * np.sqrt(phase)).reshape(shape).astype(np.float32)


@torch.no_grad()
def fill_with_waves(network: nn.Module) -> None:
    for index, parameter in enumerate(network.parameters(), start=1):
        scale = (2.0 / max(1, parameter[0].numel())) ** 0.5 if parameter.ndim > 1 else 0.1
        values = scale * wave(tuple(parameter.shape), 1.3 + 0.01 * index)
        parameter.copy_(torch.from_numpy(values))


@torch.no_grad()
def record_network(name: str, images: Array) -> dict[str, Array]:
    """Reconstruct (N, 2, 16, 16) images at 16 px, at 8 px and between."""
    network = Autoencoder(
        final_resolution=16, image_channels=2, latent_channels=5, **NETWORKS[name]
    )
    fill_with_waves(network)
    network.double()  # so that the order of additions, which threads decide, does not matter
    made = {}
    for key, resolution, alpha in (("8", 8, None), ("16_fading", 16, 0.3), ("16", 16, None)):
        doubled = torch.from_numpy(images).double()
        mixed = mix_input(doubled, resolution=resolution, alpha=alpha)
        latents = network.encode(mixed, resolution=resolution, alpha=alpha)
        reconstruction = network.decode(latents, resolution=resolution, alpha=alpha)
        made[f"latents_{key}"] = latents.float().numpy()
        made[f"mixed_{key}"] = mixed.float().numpy()
        made[f"reconstruction_{key}"] = reconstruction.float().numpy()
    return made


def record_losses(target: Array, reconstruction: Array, norm: Norm) -> dict[str, Array]:
    """Compare (N, 3, 16, 12) images in every reduction, relative or not, in a fade or not."""
    features = _features()
    images: tuple[Tensor, Tensor] = (torch.from_numpy(target), torch.from_numpy(reconstruction))
    made = {}
    for reduction, is_relative in product(REDUCTIONS, (False, True)):
        variant: dict[str, Any] = {"norm": norm, "is_relative": is_relative}
        key = f"{norm}_{'relative' if is_relative else 'absolute'}_{reduction}"
        weights = {"relu1_2": 0.5, "relu2_1": 1.0, "image": 0.7}
        plain = PerceptualLoss(features, {16: weights}, **variant)
        loss = plain(*images, resolution=16, reduction=reduction)
        made[key] = loss.numpy()
        by_resolution = {8: {"relu1_2": 1.0}, 16: {"relu2_1": 2.0}}
        growing = PerceptualLoss(features, by_resolution, **variant)
        loss = growing(*images, resolution=16, alpha=0.3, reduction=reduction)
        made[f"{key}_fading"] = loss.numpy()
    return made


def _features() -> VggFeatures:
    weights = {
        name: torch.from_numpy(0.4 * wave(tuple(tensor.shape), 1.1 + 0.01 * index))
        for index, (name, tensor) in enumerate(
            random_vgg_weights(seed=0, layers=LAYERS, width=4).items()
        )
    }
    statistics = {
        "relu1_2": (torch.linspace(0.1, 0.4, 4), torch.linspace(0.5, 2.0, 4)),
        "relu2_1": (torch.linspace(-0.1, 0.2, 8), torch.linspace(3.0, 1.0, 8)),
    }
    return VggFeatures(weights, layers=LAYERS, statistics=statistics)


def main() -> None:
    """Write every recording beside this file."""
    images = wave((2, 2, 16, 16), 0.37)
    for name in NETWORKS:
        _write(name, {"images": images, **record_network(name, images)})
    target, reconstruction = wave((3, 3, 16, 12), 0.37), wave((3, 3, 16, 12), 0.36)
    losses = {"target": target, "reconstruction": reconstruction}
    for norm in ("l1", "l2"):
        losses |= record_losses(target, reconstruction, norm)
    _write("losses", losses)


def _write(name: str, arrays: dict[str, Array]) -> None:
    # numpy's stub takes an unpacked dict's values for its own option `allow_pickle`.
    named: dict[str, Any] = {**arrays}
    np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **named)


if __name__ == "__main__":
    main()
