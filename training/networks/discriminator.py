"""The discriminator of an adversarial training, which grows with the autoencoder.

As in Shvetsova et al. 2021's public code it is an encoder whose latent is one value: how real an
image looks, on an arbitrary scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn
from torch.func import functional_call

from training.networks.autoencoder import (
    Alpha,
    Encoder,
    Form,
    channels_by_resolution,
    make_form,
)
from training.networks.growth import resolutions_between
from training.networks.layers import Widths

_SMALLEST_PX: Final = 4


class Discriminator(nn.Module):
    """Judges how real images look.

    Args:
        final_resolution: Side of the largest image in px.
        image_channels: 1 for grey, 3 for colour.
        channels: The autoencoder's feature channels, finest resolution first; where those end
            above 4 px, the last go on down to there. Or one number for all.
        form: `residual18`, `residual9` or `regular`, the form of the autoencoder.
    """

    def __init__(
        self,
        *,
        final_resolution: int,
        image_channels: int,
        channels: int | Sequence[int],
        form: Form = "residual18",
    ) -> None:
        super().__init__()
        if not isinstance(channels, int):
            missing = len(resolutions_between(_SMALLEST_PX, final_resolution)) - len(channels)
            channels = [*channels, *[channels[-1]] * missing]
        widths = Widths(
            by_resolution=channels_by_resolution(final_resolution, 1, channels),
            image=image_channels,
            latent=1,
            latent_resolution=1,
        )
        self.encoder = Encoder(make_form(form, widths))

    def forward(self, images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Judge images.

        Args:
            images: (N, C, resolution, resolution) float.
            resolution: Side of the images in px.
            alpha: Share of this resolution during its fade-in; None once it stabilizes.

        Returns:
            (N,), higher is more real.
        """
        values: Tensor = self.encoder(images, resolution=resolution, alpha=alpha)
        return values.flatten()

    def judge_frozen(self, images: Tensor, *, resolution: int, alpha: Alpha = None) -> Tensor:
        """Judge images with gradients for them alone, not for the discriminator's parameters."""
        frozen = {name: value.detach() for name, value in self.named_parameters()}
        growth = {"resolution": resolution, "alpha": alpha}
        values: Tensor = functional_call(self, frozen, (images,), growth)
        return values

    def parameters_at(self, resolution: int, *, is_fading: bool) -> list[nn.Parameter]:
        """List the parameters that a call at this resolution uses, in a fixed order."""
        parts = self.encoder.parts_at(resolution, is_fading=is_fading)
        return [parameter for part in parts for parameter in part.parameters()]
