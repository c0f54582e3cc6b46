"""The published training step, from the definitions of Shvetsova et al. 2021.

One resolution of the `residual18` networks, stabilized; VGG19 as a chain of layers; the relative
perceptual L1 loss; one Adam over both networks; the loss read at every step, twice. Modules are
eager, in single precision, channel after channel in memory. Weights are named as in the public
code (`ninatu/anomaly_detection`), and `load_published_weights` copies such weights into our
network, so that both steps give one loss.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.networks.autoencoder import Autoencoder

_SLOPE = 0.2
_SMALLEST = 4
_PART = re.compile(r"(preprocess_|postprocess_|)res_(\d+)\.(.+)\.(weight|bias)$")
_VGG_MEAN, _VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Activation, resampling, two convolutions; and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *resampling: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.LeakyReLU(_SLOPE),
            *resampling,
            nn.Conv2d(in_channels, out_channels, 3, 1, 1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1),
        )
        narrow = [] if in_channels == out_channels else [nn.Conv2d(in_channels, out_channels, 1)]
        self.skipcon = nn.Sequential(*resampling, *narrow)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        summed: Tensor = self.skipcon(features) + self.model(features)
        return summed


def make_encoder(resolution: int, *, image: int, width: int, latent: int) -> nn.Module:
    """Images -> latents of one pixel."""
    parts: dict[str, nn.Module] = {
        f"preprocess_res_{resolution}": nn.Sequential(
            nn.Conv2d(image, width, 3, 1, 1), Block(width, width), Block(width, width)
        )
    }
    for side in _resolutions(resolution)[::-1]:
        parts[f"res_{side}"] = nn.Sequential(
            Block(width, width, nn.AvgPool2d(2, 2)), Block(width, width)
        )
    last = nn.Sequential(nn.LeakyReLU(_SLOPE), nn.Conv2d(width, latent, _SMALLEST))
    return nn.Sequential(OrderedDict({**parts, f"res_{_SMALLEST}": last}))


def make_decoder(resolution: int, *, image: int, width: int, latent: int) -> nn.Module:
    """Latents of one pixel -> images."""
    first = nn.Conv2d(latent, width, _SMALLEST, padding=_SMALLEST - 1)
    parts: dict[str, nn.Module] = {f"res_{_SMALLEST}": nn.Sequential(nn.LeakyReLU(_SLOPE), first)}
    for side in _resolutions(resolution):
        parts[f"res_{side}"] = nn.Sequential(
            Block(width, width, nn.Upsample(scale_factor=2, mode="nearest")), Block(width, width)
        )
    parts[f"postprocess_res_{resolution}"] = nn.Sequential(
        nn.LeakyReLU(_SLOPE), nn.Conv2d(width, image, 3, 1, 1)
    )
    return nn.Sequential(OrderedDict(parts))


class Vgg(nn.Module):
    """VGG19 down to one layer, frozen, with that layer's normalisation.

    Args:
        weights: `conv1_1.weight`, ..., and `normalizations.<layer>.mean` and `.scale`.
        convolutions: `1_1`, `1_2`, ... down to the layer.
    """

    mean: Tensor
    scale: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, weights: Mapping[str, Tensor], convolutions: Sequence[str]) -> None:
        super().__init__()
        chain: list[nn.Module] = []
        for name in convolutions:
            if name.endswith("_1") and name != "1_1":
                chain.append(nn.MaxPool2d(2, 2))
            weight, bias = weights[f"conv{name}.weight"], weights[f"conv{name}.bias"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight.contiguous(), "bias": bias})
            chain += [conv, nn.ReLU()]
        self.chain = nn.Sequential(*chain).requires_grad_(False)
        layer = f"normalizations.relu{convolutions[-1]}"
        self.register_buffer("mean", weights[f"{layer}.mean"].clone())
        self.register_buffer("scale", weights[f"{layer}.scale"].clone())
        self.register_buffer("image_mean", torch.tensor(_VGG_MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(_VGG_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 1 or 3, H, W) in [-1, 1] to normalised features."""
        coloured = images.expand(-1, 3, -1, -1) * 0.5 + 0.5
        features = self.chain((coloured - self.image_mean) / self.image_std)
        normalised: Tensor = (features - self.mean) / self.scale
        return normalised


class PublishedStep:
    """One step of the published training.

    Args:
        encoder: Network that `make_encoder` made.
        decoder: Network that `make_decoder` made.
        vgg: Feature extractor of the loss.
        learning_rate: Learning rate of Adam.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, vgg: Vgg, *, learning_rate: float
    ) -> None:
        self.encoder, self.decoder, self.vgg = encoder, decoder, vgg
        parameters = [*encoder.parameters(), *decoder.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=learning_rate)

    def __call__(self, images: Tensor) -> float:
        """Learn from images (N, C, resolution, resolution), and give the loss."""
        loss = self.measure_loss(images, self.decoder(self.encoder(images)))
        shown = loss.item()  # for the log, and again for the guard against divergence
        if loss.item() > 1e6:
            raise ValueError(f"the loss is {shown:g}")
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        self.optimiser.step()
        return float(shown)

    def measure_loss(self, target: Tensor, made: Tensor) -> Tensor:
        """Relative perceptual L1, averaged over images."""
        of_target, of_made = self.vgg(target), self.vgg(made)
        means = of_target.abs().mean(3).mean(2).mean(1).detach()
        errors = (of_target - of_made).abs() / means.reshape(-1, 1, 1, 1)
        loss: Tensor = errors.mean(3).mean(2).mean(1).mean()
        return loss


def _resolutions(largest: int) -> list[int]:
    """Those above the smallest, ascending."""
    return [side for side in (8, 16, 32, 64, 128, 256) if side <= largest]


@torch.no_grad()
def load_published_weights(
    autoencoder: Autoencoder, *, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> None:
    """Copy public weights into the parts of their resolution and phase.

    The public code has one network per resolution and phase; ours holds all of them.

    Args:
        autoencoder: Network of the same form, latent and channels.
        encoder: State of a public encoder network, names beginning with `model.`.
        decoder: State of its decoder.

    Raises:
        ValueError: If a part is unknown here, or its tensors have other shapes.
    """
    ours, theirs = autoencoder.encoder, _by_part(encoder)
    _fill({"preprocess_": ours.from_image, "": ours.blocks}, theirs)
    mirrored, theirs = autoencoder.decoder, _by_part(decoder)
    _fill({"postprocess_": mirrored.to_image, "": mirrored.blocks}, theirs)


def _by_part(state: Mapping[str, Tensor]) -> dict[tuple[str, str], dict[str, Tensor]]:
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if found := _PART.search(name):
            kind, resolution, place, suffix = found.groups()
            parts.setdefault((kind, resolution), {})[f"{place}.{suffix}"] = tensor
    return parts


def _fill(
    ours: Mapping[str, nn.ModuleDict], theirs: Mapping[tuple[str, str], Mapping[str, Tensor]]
) -> None:
    for (kind, resolution), tensors in theirs.items():
        if kind not in ours or resolution not in ours[kind]:
            raise ValueError(f"no part {kind}res_{resolution} here: build the same resolutions")
        part = ours[kind][resolution]
        # A part's convolutions stand in one order in both, their own names apart.
        places = sorted({place.rpartition(".")[0] for place in tensors}, key=_order)
        convs = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
        if len(places) != len(convs):
            raise ValueError(
                f"{kind}res_{resolution} has {len(places)} convolutions, {len(convs)} here: "
                "build the same form"
            )
        for place, conv in zip(places, convs, strict=True):
            for suffix, parameter in conv.named_parameters():
                tensor = tensors[f"{place}.{suffix}"]
                if tensor.shape != parameter.shape:
                    raise ValueError(
                        f"{kind}res_{resolution}.{place}.{suffix} is {tuple(tensor.shape)}, "
                        f"{tuple(parameter.shape)} here: build the same channels"
                    )
                parameter.copy_(tensor)


def _order(place: str) -> list[tuple[int, int, str]]:
    # By number where there is one, and a shortcut (`skipcon`) after the block's `model`.
    return [(0, int(step), "") if step.isdigit() else (1, 0, step) for step in place.split(".")]
