"""The forms a network is made in: residual or plain parts for each resolution.

Both know the same six parts, so encoder and decoder need not know the form. Their shapes and
initialisations are those of Shvetsova et al. 2021's public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from training.networks.blocks import SLOPE, Resampling, ResidualBlock, Upsample, plain_conv
from training.networks.blocks import residual_conv as conv


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels everywhere in a network.

    Attributes:
        by_resolution: Feature channels at each resolution in px, the latent's included (4 px
            for a latent of 1 px).
        image: Channels of the images.
        latent: Channels of the latent.
        latent_resolution: Side of the latent in px.
    """

    by_resolution: Mapping[int, int]
    image: int
    latent: int
    latent_resolution: int

    def at(self, resolution: int) -> int:
        """Feature channels at a resolution."""
        return self.by_resolution[resolution]

    def above(self, resolution: int) -> int:
        """Feature channels one resolution up, or at the finest itself."""
        return self.by_resolution[min(2 * resolution, max(self.by_resolution))]


@dataclass(frozen=True, slots=True)
class ResidualForm:
    """Pre-activation residual blocks: `residual18` with `extra_blocks=1`, `residual9` with 0."""

    widths: Widths
    extra_blocks: int

    def from_image(self, resolution: int) -> nn.Module:
        """Images -> features."""
        here = self.widths.at(resolution)
        return nn.Sequential(
            conv(self.widths.image, here, 3, padding=1),
            ResidualBlock(here, here),
            *self._extra(here),
        )

    def halving(self, resolution: int) -> nn.Module:
        """Features at a resolution -> features at half of it."""
        return self._resampling(resolution, resolution // 2, "halve")

    def to_latent(self, resolution: int) -> nn.Module:
        """Features at the smallest resolution -> latents."""
        here = self.widths.at(resolution)
        if self.widths.latent_resolution == 1:
            return nn.Sequential(nn.LeakyReLU(SLOPE), conv(here, self.widths.latent, 4))
        return nn.Sequential(ResidualBlock(here, self.widths.latent))

    def from_latent(self, resolution: int) -> nn.Module:
        """Latents -> features at the smallest resolution.

        The published block expects the latent to have the features' channels; a latent that has
        others passes through the block's own shortcut.
        """
        here = self.widths.at(resolution)
        if self.widths.latent_resolution == 1:
            return nn.Sequential(nn.LeakyReLU(SLOPE), conv(self.widths.latent, here, 4, padding=3))
        return nn.Sequential(ResidualBlock(self.widths.latent, here))

    def doubling(self, resolution: int) -> nn.Module:
        """Features at half a resolution -> features at the resolution."""
        return self._resampling(resolution // 2, resolution, "double")

    def to_image(self, resolution: int) -> nn.Module:
        """Features -> images."""
        here = self.widths.at(resolution)
        return nn.Sequential(nn.LeakyReLU(SLOPE), conv(here, self.widths.image, 3, padding=1))

    def _resampling(self, start: int, end: int, resampling: Resampling) -> nn.Module:
        here = self.widths.at(end)
        block = ResidualBlock(self.widths.at(start), here, resampling)
        return nn.Sequential(block, *self._extra(here))

    def _extra(self, channels: int) -> list[nn.Module]:
        return [ResidualBlock(channels, channels) for _ in range(self.extra_blocks)]


@dataclass(frozen=True, slots=True)
class PlainForm:
    """Pairs of convolutions, as in Karras et al. 2017: the published `regular` networks.

    Its encoder changes channels one resolution later than the residual one.
    """

    widths: Widths

    def from_image(self, resolution: int) -> nn.Module:
        """Images -> features."""
        return plain_conv(self.widths.image, self.widths.above(resolution), 1)

    def halving(self, resolution: int) -> nn.Module:
        """Features at a resolution -> features at half of it."""
        widths = self.widths
        return nn.Sequential(
            *_pair(widths.above(resolution), widths.at(resolution)), nn.AvgPool2d(2)
        )

    def to_latent(self, resolution: int) -> nn.Module:
        """Features at the smallest resolution -> latents."""
        here = self.widths.at(resolution)
        kernel_size, padding = (4, 0) if self.widths.latent_resolution == 1 else (3, 1)
        return nn.Sequential(
            plain_conv(self.widths.above(resolution), here, 3, padding=1),
            plain_conv(here, here, kernel_size, padding=padding),
            plain_conv(here, self.widths.latent, 1, is_activated=False),
        )

    def from_latent(self, resolution: int) -> nn.Module:
        """Latents -> features at the smallest resolution."""
        here = self.widths.at(resolution)
        kernel_size, padding = (4, 3) if self.widths.latent_resolution == 1 else (3, 1)
        return nn.Sequential(
            plain_conv(self.widths.latent, here, kernel_size, padding=padding),
            plain_conv(here, here, 3, padding=1),
        )

    def doubling(self, resolution: int) -> nn.Module:
        """Features at half a resolution -> features at the resolution."""
        widths = self.widths
        return nn.Sequential(Upsample(), *_pair(widths.at(resolution // 2), widths.at(resolution)))

    def to_image(self, resolution: int) -> nn.Module:
        """Features -> images."""
        return plain_conv(self.widths.at(resolution), self.widths.image, 1, is_activated=False)


def _pair(in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    return (
        plain_conv(in_channels, out_channels, 3, padding=1),
        plain_conv(out_channels, out_channels, 3, padding=1),
    )
