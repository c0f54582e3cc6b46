"""One forward pass through a trained autoencoder, for validation and scoring alike."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from training.networks.autoencoder import Autoencoder, mix_input
from training.networks.growth import GrowthState
from training.networks.losses import Comparison, PerceptualLoss


@dataclass(frozen=True)
class Reconstruction:
    """What an autoencoder makes of images at one point of its growth.

    Attributes:
        target: float (N, C, resolution, resolution), the images as the network saw them.
        latents: float (N, latent channels, latent side, latent side).
        images: Reconstructions, of the target's shape; not clipped.
        growth: Resolution and alpha of the pass.
    """

    target: Tensor
    latents: Tensor
    images: Tensor
    growth: GrowthState

    def compare(self, loss: PerceptualLoss) -> Comparison:
        """Extract the features of target and reconstruction, once each.

        Reduced by `none` the comparison gives anomaly scores (N,), by `pixelwise` heatmaps
        (N, 1, resolution, resolution).
        """
        return loss.compare(
            self.target, self.images, resolution=self.growth.resolution, alpha=self.growth.alpha
        )


def reconstruct(
    autoencoder: Autoencoder,
    images: Tensor,
    growth: GrowthState,
    *,
    precision: AbstractContextManager[object] | None = None,
) -> Reconstruction:
    """Pass images through an autoencoder.

    Args:
        autoencoder: Network itself, not wrapped for data-parallel training.
        images: float (N, C, final resolution, final resolution) in [-1, 1].
        growth: Resolution and alpha of the pass.
        precision: Context that the autoencoder runs in, such as `torch.autocast`; full precision
            by default.
    """
    resolution, alpha = growth.resolution, growth.alpha
    target = mix_input(images, resolution=resolution, alpha=alpha)
    with precision or nullcontext():
        latents = autoencoder.encode(target, resolution=resolution, alpha=alpha)
        made = autoencoder.decode(latents, resolution=resolution, alpha=alpha)
    return Reconstruction(target, latents, made, growth)
