"""Layers of the published encoders and decoders, and the two forms that are made of them.

Pre-activation residual blocks without normalisation (He et al. 2016) and plain pairs of
convolutions, with the shapes and initialisation of Shvetsova et al. 2021's public code. Activations
are leaky ReLU of slope 0.2 throughout. Both forms have the same six parts for each resolution, so
encoder and decoder need not know the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2

Resampling: TypeAlias = Literal["keep", "halve", "double"]


def activate(features: Tensor) -> Tensor:
    """Apply the leaky ReLU of slope 0.2."""
    return F.leaky_relu(features, SLOPE)


def halve(features: Tensor) -> Tensor:
    """Average pairs of rows and columns: (N, C, H, W) -> (N, C, H/2, W/2)."""
    return F.avg_pool2d(features, 2)


def double(features: Tensor) -> Tensor:
    """Repeat every row and column: (N, C, H, W) -> (N, C, 2H, 2W)."""
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


def resample(features: Tensor, resampling: Resampling) -> Tensor:
    """Halve, double or keep the resolution."""
    if resampling == "keep":
        return features
    return halve(features) if resampling == "halve" else double(features)


class ResidualBlock(nn.Module):
    """Activation, resampling, convolution, activation, convolution; plus a shortcut.

    The shortcut resamples alike and has a 1 x 1 convolution only where the channels differ.
    """

    def __init__(self, in_channels: int, out_channels: int, resampling: Resampling = "keep"):
        super().__init__()
        self.resampling: Resampling = resampling
        self.conv1 = residual_conv(in_channels, out_channels, 3, padding=1)
        self.conv2 = residual_conv(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else residual_conv(in_channels, out_channels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        resampled = resample(activate(features), self.resampling)
        inner: Tensor = self.conv2(activate(self.conv1(resampled)))
        shortcut: Tensor = self.shortcut(resample(features, self.resampling))
        return shortcut + inner


class Upsample(nn.Module):
    """Doubles the resolution, as a layer."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        return double(features)


def residual_conv(
    in_channels: int, out_channels: int, kernel_size: int, padding: int = 0
) -> nn.Conv2d:
    """Make a convolution of the residual forms: He initialisation by fan-out."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return conv


def plain_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    padding: int = 0,
    *,
    is_activated: bool = True,
) -> nn.Sequential:
    """Make a convolution of the plain form, with its activation: Glorot initialisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
    gain = nn.init.calculate_gain("leaky_relu", SLOPE) if is_activated else 1.0
    nn.init.xavier_uniform_(conv.weight, gain=gain)
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE)) if is_activated else nn.Sequential(conv)


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
            residual_conv(self.widths.image, here, 3, padding=1),
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
            return nn.Sequential(nn.LeakyReLU(SLOPE), residual_conv(here, self.widths.latent, 4))
        return nn.Sequential(ResidualBlock(here, self.widths.latent))

    def from_latent(self, resolution: int) -> nn.Module:
        """Latents -> features at the smallest resolution.

        The published block expects the latent to have the features' channels; a latent that has
        others passes through the block's own shortcut.
        """
        here = self.widths.at(resolution)
        if self.widths.latent_resolution == 1:
            return nn.Sequential(
                nn.LeakyReLU(SLOPE), residual_conv(self.widths.latent, here, 4, padding=3)
            )
        return nn.Sequential(ResidualBlock(self.widths.latent, here))

    def doubling(self, resolution: int) -> nn.Module:
        """Features at half a resolution -> features at the resolution."""
        return self._resampling(resolution // 2, resolution, "double")

    def to_image(self, resolution: int) -> nn.Module:
        """Features -> images."""
        here = self.widths.at(resolution)
        return nn.Sequential(
            nn.LeakyReLU(SLOPE), residual_conv(here, self.widths.image, 3, padding=1)
        )

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
