"""The progressively growing autoencoder of Shvetsova et al. 2021 (arXiv 2006.13265).

All resolutions exist from the start, so optimisers and process groups see one fixed list of
parameters; `resolution` and `alpha` choose the path of a call. A call without alpha uses one
resolution alone (phase `stabilize`). With alpha, even with 1.0, the new and the former resolution
are both computed and blended (phase `fade_in`), so that the parameters in use stay the same
throughout a phase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from training.networks.growth import resolutions_between
from training.networks.layers import PlainForm, ResidualForm, Widths, double, halve

Form: TypeAlias = Literal["residual18", "residual9", "regular"]
Alpha: TypeAlias = float | Tensor | None

_EXTRA = {"residual18": 1, "residual9": 0}


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
        widths = Widths(
            by_resolution=channels_by_resolution(final_resolution, latent_resolution, channels),
            image=image_channels,
            latent=latent_channels,
            latent_resolution=latent_resolution,
        )
        made = make_form(form, widths)
        self.encoder = Encoder(made)
        self.decoder = Decoder(made)

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
    """Images -> latents; with a latent of one value it is the published discriminator."""

    def __init__(self, form: ResidualForm | PlainForm) -> None:
        super().__init__()
        smallest, *larger = self.resolutions = tuple(sorted(form.widths.by_resolution))
        self.from_image = nn.ModuleDict(_parts(form.from_image, self.resolutions))
        self.blocks = nn.ModuleDict(
            _parts(form.to_latent, [smallest]) | _parts(form.halving, larger)
        )

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
        return _parts_at(self.blocks, self.from_image, resolution, is_fading=is_fading)


class Decoder(nn.Module):
    """Latents -> images."""

    def __init__(self, form: ResidualForm | PlainForm) -> None:
        super().__init__()
        smallest, *larger = self.resolutions = tuple(sorted(form.widths.by_resolution))
        self.blocks = nn.ModuleDict(
            _parts(form.from_latent, [smallest]) | _parts(form.doubling, larger)
        )
        self.to_image = nn.ModuleDict(_parts(form.to_image, self.resolutions))

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
        return _parts_at(self.blocks, self.to_image, resolution, is_fading=is_fading)


def make_form(form: Form, widths: Widths) -> ResidualForm | PlainForm:
    """Choose the parts of a network of this form and these widths."""
    return PlainForm(widths) if form == "regular" else ResidualForm(widths, _EXTRA[form])


def blend(former: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    """Mix two tensors of one shape: `(1 - alpha) * former + alpha * new`."""
    return former * (1.0 - alpha) + new * alpha


def mix_input(images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
    """Shrink images to a resolution, and mix in the former one during a fade.

    Args:
        images: (N, C, final resolution, final resolution) float.
        resolution: Side wanted, in px.
        alpha: Share of this resolution during its fade-in; None once it stabilizes.

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


def _parts(make: Callable[[int], nn.Module], resolutions: Iterable[int]) -> dict[str, nn.Module]:
    return {str(resolution): make(resolution) for resolution in resolutions}


def _parts_at(
    blocks: nn.ModuleDict, ends: nn.ModuleDict, resolution: int, *, is_fading: bool
) -> list[nn.Module]:
    ends_used = [resolution // 2, resolution] if is_fading else [resolution]
    return [
        *(block for key, block in blocks.items() if int(key) <= resolution),
        *(ends[str(used)] for used in ends_used),
    ]


def _shrink(images: Tensor, resolution: int) -> Tensor:
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(
        images, size=(resolution, resolution), mode="bilinear", align_corners=False
    )
