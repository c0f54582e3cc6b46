"""Frozen VGG19 (Simonyan and Zisserman 2014), the feature extractor of the perceptual loss.

Layers are named `relu1_2`, `relu2_1`, ..., `relu5_4`; `image` names the network's own input,
the image in ImageNet's normalisation. torchvision is not needed: its weight file is read directly,
and so are the normalised and the distilled forms of the style-transfer literature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding: TypeAlias = Literal["zeros", "reflect"]
Statistics: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]

IMAGE = "image"
CONVOLUTIONS = tuple(
    f"{block}_{index}"
    for block, count in enumerate((2, 2, 4, 4, 4), start=1)
    for index in range(1, count + 1)
)
LAYERS = tuple(f"relu{name}" for name in CONVOLUTIONS)
WIDTHS = (64, 128, 256, 512, 512)

# ImageNet's mean and standard deviation, of images in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class VggFeatures(nn.Module):
    """Features of images, optionally normalised per channel; never trained.

    Args:
        weights: `conv1_1.weight` (out, in, 3, 3), `conv1_1.bias` (out,), `conv1_2...`, at least
            down to the deepest layer; what lies deeper is left out.
        layers: Names of the layers that a call returns when none are named.
        padding: `zeros` as torchvision's, `reflect` as the normalised forms'.
        statistics: Mean and scale of each layer's channels, shape (C,) or (1, C, 1, 1):
            features become `(features - mean) / scale`. Layers without stay as they are.

    Raises:
        ValueError: If a layer is unknown, its weights are missing, or its statistics differ in
            the number of channels.
    """

    input_gain: Tensor
    input_offset: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        layers: Sequence[str],
        padding: Padding = "zeros",
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.padding: Padding = padding
        for name in convolutions_needed(self.layers):
            self.add_module(f"conv{name}", _frozen_conv(weights, f"conv{name}", padding))
        self.normalizations = nn.ModuleDict()
        # Colours in [-1, 1] -> ImageNet's normalisation, as one multiplication and one addition.
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
        self.register_buffer("input_gain", 0.5 / std, persistent=False)
        self.register_buffer("input_offset", (0.5 - mean) / std, persistent=False)
        self.register_buffer("reflects", torch.tensor(padding == "reflect"))
        self.normalize_by(statistics or {})

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute features.

        Args:
            images: (N, 1 or 3, H, W) float in [-1, 1]; grey is repeated to three channels.
            layers: Names of layers, `image` among them if wanted; the instance's own if None.

        Returns:
            Each layer's (N, C, H', W'), normalised where there are statistics.
        """
        wanted = self.layers if layers is None else tuple(layers)
        features = images * self.input_gain + self.input_offset
        found = {IMAGE: features} if IMAGE in wanted else {}
        for name in convolutions_needed(wanted):
            if name.endswith("_1") and name != "1_1":
                features = F.max_pool2d(features, 2)
            features = F.relu(self.get_submodule(f"conv{name}")(features))
            layer = f"relu{name}"
            if layer in wanted:
                is_normalized = layer in self.normalizations
                found[layer] = self.normalizations[layer](features) if is_normalized else features
        return found

    def normalize_by(self, statistics: Statistics) -> None:
        """Normalise the layers that have statistics, by mean and scale.

        Raises:
            ValueError: If a layer has another number of channels than its statistics.
        """
        for layer in self.layers:
            if layer in statistics:
                mean, scale = statistics[layer]
                conv = self.get_submodule(f"conv{layer.removeprefix('relu')}")
                if not mean.numel() == scale.numel() == conv.out_channels:
                    raise ValueError(
                        f"{layer} has {conv.out_channels} channels here, "
                        f"{mean.numel()} in its statistics"
                    )
                normalization = ChannelNormalization(mean, scale)
                self.normalizations[layer] = normalization.to(self.input_gain.device)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, layers: Sequence[str]) -> VggFeatures:
        """Rebuild an extractor from its `state_dict()`, padding and statistics included."""
        statistics = {
            layer: (state[f"normalizations.{layer}.mean"], state[f"normalizations.{layer}.scale"])
            for layer in LAYERS
            if f"normalizations.{layer}.mean" in state
        }
        padding: Padding = "reflect" if bool(state["reflects"]) else "zeros"
        return cls(state, layers=layers, padding=padding, statistics=statistics)


class ChannelNormalization(nn.Module):
    """`(features - mean) / scale`, channel by channel."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float().reshape(1, -1, 1, 1))
        self.register_buffer("scale", scale.detach().clone().float().reshape(1, -1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        return (features - self.mean) / self.scale


def convolutions_needed(layers: Iterable[str]) -> tuple[str, ...]:
    """List the convolutions, as `1_1`, `1_2`, ..., down to the deepest of the layers.

    Raises:
        ValueError: If a layer is none of VGG19's.
    """
    depth = 0
    for layer in layers:
        if layer == IMAGE:
            continue
        if layer not in LAYERS:
            raise ValueError(f"VGG19 has no layer {layer!r}: choose {', '.join(LAYERS)}")
        depth = max(depth, LAYERS.index(layer) + 1)
    return CONVOLUTIONS[:depth]


def layer_at(resolution: int) -> str:
    """Choose the default layer to compare images of a resolution by.

    Every doubling goes one block deeper, so that maps of 8 x 8 px are compared throughout, as in
    the published settings for radiographs: relu1_2 at 8 px, relu2_2 at 16, relu3_2 at 32, relu4_2
    at 64. So relu5_2 at 128 px. VGG19 ends there: 256 px and above are compared by its very last
    layer, relu5_4, whose receptive field is 252 px.

    Args:
        resolution: Side of the images in px, a power of two from 8 on.

    Raises:
        ValueError: If it is another.
    """
    block = resolution.bit_length() - 3
    if block < 1 or resolution.bit_count() != 1:
        raise ValueError(f"no layer suits {resolution} px: choose a power of two from 8 px on")
    return f"relu{block}_2" if block <= len(WIDTHS) else LAYERS[-1]


@torch.no_grad()
def measure_statistics(
    features: VggFeatures, batches: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Measure mean and standard deviation of every channel, over images and positions.

    Args:
        features: The extractor, not normalised.
        batches: (N, 1 or 3, H, W) float in [-1, 1]; same batches, same statistics.

    Returns:
        For each of the extractor's layers two (1, C, 1, 1) tensors for `normalize_by`. A channel
        that is constant gets the scale 1.

    Raises:
        ValueError: If the extractor normalises already, or there is no batch.
    """
    if len(features.normalizations):
        raise ValueError("the features are normalised already: measure an extractor without")
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for layer, values in features(batch).items():
            moments = _moments(values.double())
            sums[layer] = moments if layer not in sums else sums[layer] + moments
    if not sums:
        raise ValueError("no images to measure features of: give at least one batch")
    return {layer: _mean_and_deviation(total) for layer, total in sums.items()}


def _moments(values: Tensor) -> Tensor:
    count = torch.full_like(values[0, :, 0, 0], values.numel() / values.shape[1])
    return torch.stack([count, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])


def _mean_and_deviation(moments: Tensor) -> tuple[Tensor, Tensor]:
    count, total, squares = moments
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return mean.float().view(1, -1, 1, 1), deviation.float().view(1, -1, 1, 1)


def random_vgg_weights(*, seed: int, layers: Sequence[str], width: int = 64) -> dict[str, Tensor]:
    """Draw weights that keep the variance of features from layer to layer (He et al. 2015).

    Args:
        seed: Seed of the random weights.
        layers: Layers to reach.
        width: Channels of the first block; VGG19's own is 64, and later blocks have 2, 4, 8 and
            8 times as many.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, in_channels = {}, 3
    for name in convolutions_needed(layers):
        out_channels = WIDTHS[int(name[0]) - 1] * width // WIDTHS[0]
        scale = (2.0 / (9 * in_channels)) ** 0.5
        shape = (out_channels, in_channels, 3, 3)
        weights[f"conv{name}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"conv{name}.bias"] = torch.zeros(out_channels)
        in_channels = out_channels
    return weights


def _frozen_conv(weights: Mapping[str, Tensor], name: str, padding: Padding) -> nn.Conv2d:
    for key in (f"{name}.weight", f"{name}.bias"):
        if key not in weights:
            raise ValueError(f"no weights for {key}: choose shallower layers or other weights")
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, padding_mode=padding)
    conv.weight = nn.Parameter(weight.detach().clone().float(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().clone().float(), requires_grad=False)
    return conv
