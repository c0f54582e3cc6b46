"""The progressively growing autoencoder of Shvetsova et al. 2021 (arXiv 2006.13265).

All resolutions exist from the start, so optimisers and process groups see one fixed list of
parameters; `resolution` and `alpha` choose the path of a call. A call without alpha takes the
path of one resolution alone (phase `stabilize`); with alpha, also with 1.0, both the new and the
former resolution are walked and blended (phase `fade_in`), so that the parameters in use stay
the same throughout a phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from training.models.blocks import (
    SLOPE,
    ResidualBlock,
    Upsample,
    double,
    halve,
    plain_conv,
    residual_conv,
)
from training.models.growth import resolutions_between

Form: TypeAlias = Literal["residual18", "residual9", "regular"]
Alpha: TypeAlias = float | Tensor | None


class Autoencoder(nn.Module):
    """Encoder and decoder that mirror each other.

    Args:
        final_resolution: Side of the largest image in px.
        image_channels: 1 for grey, 3 for colour.
        latent_resolution: Side of the latent in px: 1, 4, 8, 16, ...
        latent_channels: Channels of the latent.
        channels: Feature channels at each resolution, finest first, down to the latent's (to
            4 px for a latent of 1 px); or one number for all.
        form: `residual18`, `residual9` or `regular` (plain convolutions).

    Raises:
        ValueError: If the resolutions do not double, or the channels do not fit them.
    """

    def __init__(
        self,
        *,
        final_resolution: int,
        image_channels: int,
        latent_resolution: int,
        latent_channels: int,
        channels: int | Sequence[int],
        form: Form = "residual18",
    ) -> None:
        super().__init__()
        per_resolution = channels_by_resolution(final_resolution, latent_resolution, channels)
        self.encoder = Encoder(
            per_resolution,
            image_channels=image_channels,
            latent_resolution=latent_resolution,
            latent_channels=latent_channels,
            form=form,
        )
        self.decoder = Decoder(
            per_resolution,
            image_channels=image_channels,
            latent_resolution=latent_resolution,
            latent_channels=latent_channels,
            form=form,
        )

    def forward(self, images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Reconstruct images.

        Args:
            images: (N, C, resolution, resolution) float, in [-1, 1], from `mix_input`.
            resolution: Side of the images in px.
            alpha: Share of this resolution during its fade-in, a number or a scalar tensor;
                None once it stabilizes.

        Returns:
            (N, C, resolution, resolution) float; not clipped.
        """
        return self.decode(
            self.encode(images, resolution=resolution, alpha=alpha),
            resolution=resolution,
            alpha=alpha,
        )

    def encode(self, images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Map images to latents (N, latent channels, latent side, latent side)."""
        latents: Tensor = self.encoder(images, resolution=resolution, alpha=alpha)
        return latents

    def decode(self, latents: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Map latents to images (N, C, resolution, resolution)."""
        images: Tensor = self.decoder(latents, resolution=resolution, alpha=alpha)
        return images

    def parameters_at(self, resolution: int, *, is_fading: bool) -> list[nn.Parameter]:
        """List the parameters that a call at this resolution uses, in a fixed order."""
        parts = [
            *self.encoder.parts_at(resolution, is_fading=is_fading),
            *self.decoder.parts_at(resolution, is_fading=is_fading),
        ]
        return [parameter for part in parts for parameter in part.parameters()]


class Encoder(nn.Module):
    """Images -> latents; with a latent of one value, the published discriminator."""

    def __init__(
        self,
        channels: dict[int, int],
        *,
        image_channels: int,
        latent_resolution: int,
        latent_channels: int,
        form: Form,
    ) -> None:
        super().__init__()
        self.resolutions = tuple(sorted(channels))
        self.from_image = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for resolution in self.resolutions:
            # The plain form changes channels one resolution later than the residual ones.
            wide = channels[min(2 * resolution, self.resolutions[-1])]
            here, key = channels[resolution], str(resolution)
            if form == "regular":
                self.from_image[key] = plain_conv(image_channels, wide, 1)
            else:
                self.from_image[key] = _residual_from_image(image_channels, here, form)
            if resolution > self.resolutions[0]:
                self.blocks[key] = (
                    _plain_block(wide, here, nn.AvgPool2d(2))
                    if form == "regular"
                    else _residual_block(here, channels[resolution // 2], "halve", form)
                )
            elif form == "regular":
                self.blocks[key] = _plain_to_latent(wide, here, latent_channels, latent_resolution)
            else:
                self.blocks[key] = _residual_to_latent(here, latent_channels, latent_resolution)

    def forward(self, images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Map (N, C, resolution, resolution) to latents."""
        key = str(resolution)
        features: Tensor = self.blocks[key](self.from_image[key](images))
        if alpha is not None:
            former = self.from_image[str(resolution // 2)](halve(images))
            features = blend(former, features, alpha)
        for below in reversed(self.resolutions):
            if below < resolution:
                features = self.blocks[str(below)](features)
        return features

    def parts_at(self, resolution: int, *, is_fading: bool) -> list[nn.Module]:
        """List the parts that a call at this resolution uses."""
        images = [resolution // 2, resolution] if is_fading else [resolution]
        return [
            *(self.from_image[str(r)] for r in images),
            *(self.blocks[str(r)] for r in self.resolutions if r <= resolution),
        ]


class Decoder(nn.Module):
    """Latents -> images."""

    def __init__(
        self,
        channels: dict[int, int],
        *,
        image_channels: int,
        latent_resolution: int,
        latent_channels: int,
        form: Form,
    ) -> None:
        super().__init__()
        self.resolutions = tuple(sorted(channels))
        self.to_image = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for resolution in self.resolutions:
            here, key = channels[resolution], str(resolution)
            if resolution > self.resolutions[0]:
                below = channels[resolution // 2]
                self.blocks[key] = (
                    nn.Sequential(Upsample(), *_plain_block(below, here))
                    if form == "regular"
                    else _residual_block(below, here, "double", form)
                )
            elif form == "regular":
                self.blocks[key] = _plain_from_latent(latent_channels, here, latent_resolution)
            else:
                self.blocks[key] = _residual_from_latent(latent_channels, here, latent_resolution)
            self.to_image[key] = (
                plain_conv(here, image_channels, 1, is_activated=False)
                if form == "regular"
                else nn.Sequential(
                    nn.LeakyReLU(SLOPE), residual_conv(here, image_channels, 3, padding=1)
                )
            )

    def forward(self, latents: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Map latents to (N, C, resolution, resolution)."""
        features = latents
        for below in self.resolutions:
            if below < resolution:
                features = self.blocks[str(below)](features)
        key = str(resolution)
        images: Tensor = self.to_image[key](self.blocks[key](features))
        if alpha is None:
            return images
        return blend(double(self.to_image[str(resolution // 2)](features)), images, alpha)

    def parts_at(self, resolution: int, *, is_fading: bool) -> list[nn.Module]:
        """List the parts that a call at this resolution uses."""
        images = [resolution // 2, resolution] if is_fading else [resolution]
        return [
            *(self.blocks[str(r)] for r in self.resolutions if r <= resolution),
            *(self.to_image[str(r)] for r in images),
        ]


def blend(former: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    """Mix two tensors of one shape: `(1 - alpha) * former + alpha * new`."""
    return former * (1.0 - alpha) + new * alpha


def mix_input(images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
    """Shrink images to a resolution, and mix in the former one during a fade.

    Args:
        images: (N, C, final resolution, final resolution) float.
        resolution: Side wanted, in px.
        alpha: As for the network: share of this resolution, None once it stabilizes.

    Returns:
        (N, C, resolution, resolution): bilinear, without antialiasing, as published; the former
        resolution is shrunk from the full images, then doubled by repetition.
    """
    new = _shrink(images, resolution)
    if alpha is None:
        return new
    return blend(double(_shrink(images, resolution // 2)), new, alpha)


def channels_by_resolution(
    final_resolution: int, latent_resolution: int, channels: int | Sequence[int]
) -> dict[int, int]:
    """Give every resolution its feature channels.

    Args:
        final_resolution: Side of the largest image in px.
        latent_resolution: Side of the latent in px; below 4 px only 1 is known.
        channels: Finest resolution first, or one number for all.

    Raises:
        ValueError: If there are more or fewer numbers than resolutions.
    """
    if latent_resolution in (2, 3):
        raise ValueError(f"a latent of {latent_resolution} px is not known: choose 1, 4, 8, ...")
    smallest = 4 if latent_resolution == 1 else latent_resolution
    resolutions = resolutions_between(smallest, final_resolution)[::-1]
    listed = [channels] * len(resolutions) if isinstance(channels, int) else list(channels)
    if len(listed) != len(resolutions):
        raise ValueError(
            f"{len(listed)} channel counts for {len(resolutions)} resolutions: "
            f"give one for each of {', '.join(map(str, resolutions))} px"
        )
    return dict(zip(resolutions, listed, strict=True))


def _shrink(images: Tensor, resolution: int) -> Tensor:
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(
        images, size=(resolution, resolution), mode="bilinear", align_corners=False
    )


def _residual_from_image(image_channels: int, channels: int, form: Form) -> nn.Sequential:
    blocks = [ResidualBlock(channels, channels) for _ in range(2 if form == "residual18" else 1)]
    return nn.Sequential(residual_conv(image_channels, channels, 3, padding=1), *blocks)


def _residual_block(
    in_channels: int, out_channels: int, resampling: Literal["halve", "double"], form: Form
) -> nn.Sequential:
    blocks = [ResidualBlock(in_channels, out_channels, resampling)]
    if form == "residual18":
        blocks.append(ResidualBlock(out_channels, out_channels))
    return nn.Sequential(*blocks)


def _residual_to_latent(channels: int, latent_channels: int, latent_resolution: int) -> nn.Module:
    if latent_resolution == 1:
        return nn.Sequential(nn.LeakyReLU(SLOPE), residual_conv(channels, latent_channels, 4))
    return nn.Sequential(ResidualBlock(channels, latent_channels))


def _residual_from_latent(latent_channels: int, channels: int, latent_resolution: int) -> nn.Module:
    if latent_resolution == 1:
        conv = residual_conv(latent_channels, channels, 4, padding=3)
        return nn.Sequential(nn.LeakyReLU(SLOPE), conv)
    # The published block takes the latent for features and so knows no change of channels;
    # one that differs is given the block's own shortcut.
    return nn.Sequential(ResidualBlock(latent_channels, channels))


def _plain_block(in_channels: int, out_channels: int, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        plain_conv(in_channels, out_channels, 3, padding=1),
        plain_conv(out_channels, out_channels, 3, padding=1),
        *last,
    )


def _plain_to_latent(
    in_channels: int, channels: int, latent_channels: int, latent_resolution: int
) -> nn.Sequential:
    kernel_size, padding = (4, 0) if latent_resolution == 1 else (3, 1)
    return nn.Sequential(
        plain_conv(in_channels, channels, 3, padding=1),
        plain_conv(channels, channels, kernel_size, padding=padding),
        plain_conv(channels, latent_channels, 1, is_activated=False),
    )


def _plain_from_latent(
    latent_channels: int, channels: int, latent_resolution: int
) -> nn.Sequential:
    kernel_size, padding = (4, 3) if latent_resolution == 1 else (3, 1)
    return nn.Sequential(
        plain_conv(latent_channels, channels, kernel_size, padding=padding),
        plain_conv(channels, channels, 3, padding=1),
    )
