"""Convolution blocks of the published encoders and decoders.

Pre-activation residual blocks without normalisation (He et al. 2016) and plain pairs of
convolutions, with the initialisation of Shvetsova et al. 2021's public code. Activations are
leaky ReLU of slope 0.2 throughout.
"""

from __future__ import annotations

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
    """`double` as a layer."""

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
