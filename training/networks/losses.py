"""Reconstruction losses, which are also the anomaly score and the heatmap.

The relative perceptual L1 loss of Shvetsova et al. 2021 (arXiv 2006.13265, section 3.1): the
distance between features of an image and of its reconstruction, relative to the image's own.
The target comes first everywhere; nothing is differentiated with respect to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Norm: TypeAlias = Literal["l1", "l2"]
Reduction: TypeAlias = Literal["none", "mean", "sum", "pixelwise"]
LayerWeights: TypeAlias = Mapping[str, float]
Judge: TypeAlias = Callable[[Tensor], Tensor]


class Extractor(Protocol):
    """Feature extractor, such as `training.networks.vgg.VggFeatures`."""

    def __call__(self, images: Tensor, layers: Sequence[str], /) -> Mapping[str, Tensor]:
        """Map (N, 1 or 3, H, W) in [-1, 1] to each layer's (N, C, H', W')."""
        ...


@dataclass(frozen=True)
class PerceptualLoss:
    """Compares images by the features of their resolution, blended with the former's in a fade.

    During a fade the loss is `(1 - alpha) * former + alpha * new`: the former compares the images
    halved bilinearly by the former resolution's layers (published as `use_smooth_pg`).

    Attributes:
        extract: Feature extractor; its features are compared as they come.
        weights_by_resolution: Weight of each compared layer, for each resolution in px; the layer
            `image` is the published pixel term.
        norm: `l1` or `l2` (squared).
        is_relative: Whether errors are divided by the mean norm of the target's own features,
            image by image.
        is_blended: Whether a fade blends the losses of both resolutions, not only the images.

    >>> import torch
    >>> def brightness(images, layers):
    ...     return {layer: images.mean(1, keepdim=True) for layer in layers}
    >>> loss = PerceptualLoss(brightness, {4: {"any": 1.0}})
    >>> target, made = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.25)
    >>> loss(target, made, resolution=4)
    tensor(0.5000)
    >>> loss(target, made, resolution=4, reduction="none")
    tensor([0.5000, 0.5000])
    """

    extract: Extractor
    weights_by_resolution: Mapping[int, LayerWeights]
    norm: Norm = "l1"
    is_relative: bool = True
    is_blended: bool = True

    def __call__(
        self,
        target: Tensor,
        reconstruction: Tensor,
        *,
        resolution: int,
        alpha: float | Tensor | None = None,
        target_features: Mapping[str, Tensor] | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Compare images and reduce the errors; see `compare` and `Comparison.reduce`."""
        comparison = self.compare(
            target,
            reconstruction,
            resolution=resolution,
            alpha=alpha,
            target_features=target_features,
        )
        return comparison.reduce(reduction)

    def compare(
        self,
        target: Tensor,
        reconstruction: Tensor,
        *,
        resolution: int,
        alpha: float | Tensor | None = None,
        target_features: Mapping[str, Tensor] | None = None,
    ) -> Comparison:
        """Extract the features of both images, once, for any number of reductions.

        Args:
            target: float (N, 1 or 3, H, W) in [-1, 1], the true images; nothing is differentiated
                with respect to them.
            reconstruction: Images of the same shape, made by the network.
            resolution: Nominal side of the images in px; chooses the layers.
            alpha: Share of this resolution during its fade-in; None once it stabilizes.
            target_features: Features of the target in the layers of this resolution, if they are
                known already.

        Raises:
            ValueError: If no layer is weighted.
        """
        new = self._extract(target, reconstruction, resolution, target_features)
        if alpha is None or not self.is_blended:
            return Comparison(self, new)
        former = self._extract(_halve(target), _halve(reconstruction), resolution // 2)
        return Comparison(self, new, former, alpha)

    def extract_target(self, target: Tensor, resolution: int) -> Mapping[str, Tensor]:
        """Compute the `target_features` of images at a resolution."""
        with torch.no_grad():
            return self.extract(target, tuple(self.weights_by_resolution[resolution]))

    def _extract(
        self,
        target: Tensor,
        reconstruction: Tensor,
        resolution: int,
        target_features: Mapping[str, Tensor] | None = None,
    ) -> FeaturePair:
        weights = self.weights_by_resolution[resolution]
        if not weights:
            raise ValueError("no layer to compare: give at least one, such as {'relu3_2': 1.0}")
        if target_features is None:
            target_features = self.extract_target(target, resolution)
        of_reconstruction = self.extract(reconstruction, tuple(weights))
        return FeaturePair(weights, target_features, of_reconstruction, target.shape[-2:])


class FeaturePair(NamedTuple):
    """Features of images and of their reconstructions, of the layers of one resolution."""

    layer_weights: LayerWeights
    target: Mapping[str, Tensor]
    reconstruction: Mapping[str, Tensor]
    size_yx: torch.Size


@dataclass(frozen=True)
class Comparison:
    """Extracted features of images and their reconstructions, ready to be reduced to errors."""

    loss: PerceptualLoss
    new: FeaturePair
    former: FeaturePair | None = None
    alpha: float | Tensor = 1.0

    def reduce(self, reduction: Reduction) -> Tensor:
        """Average the layers' errors by weight.

        Args:
            reduction: `none` gives (N,), the anomaly scores; `mean` and `sum` a scalar;
                `pixelwise` (N, 1, H, W), the heatmaps, bilinearly enlarged.
        """
        new = self._reduce(self.new, reduction)
        if self.former is None:
            return new
        former = self._reduce(self.former, reduction)
        if reduction == "pixelwise":
            former = _enlarge(former, self.new.size_yx)
        return (1.0 - self.alpha) * former + self.alpha * new

    def _reduce(self, pair: FeaturePair, reduction: Reduction) -> Tensor:
        weighted = []
        for layer, weight in pair.layer_weights.items():
            target, reconstruction = pair.target[layer], pair.reconstruction[layer]
            errors = _errors(target, reconstruction, self.loss.norm, self.loss.is_relative)
            if reduction == "pixelwise":
                weighted.append(weight * _enlarge(errors.mean(1, keepdim=True), pair.size_yx))
            else:
                weighted.append(weight * errors.mean((1, 2, 3)))
        total = torch.stack(weighted).sum(0) / sum(pair.layer_weights.values())
        return _reduce(total, reduction)


def pixel_loss(target: Tensor, reconstruction: Tensor) -> Tensor:
    """Compute the mean L1 distance of pixels (N, C, H, W), as in the paper's ablation."""
    return (target - reconstruction).abs().mean((1, 2, 3)).mean()


def adversarial_loss(judge: Judge, reconstruction: Tensor) -> Tensor:
    """Measure how unreal reconstructions look: Wasserstein's generator loss (Arjovsky et al. 2017).

    Args:
        judge: Discriminator: (N, C, H, W) -> (N,), higher is more real.
        reconstruction: (N, C, H, W).
    """
    return -judge(reconstruction).mean()


def critic_loss(
    judge: Judge,
    real: Tensor,
    made: Tensor,
    shares: Tensor,
    *,
    gradient_weight: float,
    drift_weight: float,
) -> Tensor:
    """Compute a discriminator's loss (Gulrajani et al. 2017, arXiv 1704.00028, equation 3).

    It is Wasserstein's distance, plus a penalty on gradients whose length is not 1 between real
    and made images, plus one that keeps judgements near 0 (Karras et al. 2017, arXiv 1710.10196,
    A.1), as in the public code also for made images.

    Args:
        judge: Discriminator: (N, C, H, W) -> (N,), higher is more real.
        real: (N, C, H, W) images.
        made: float (N, C, H, W), their reconstructions; nothing is differentiated with respect
            to them.
        shares: float (N,) in [0, 1), share of the real image in the mixture whose gradient is
            penalised.
        gradient_weight: Weight of the penalty on gradients.
        drift_weight: Weight of the squared judgements.
    """
    made = made.detach()
    of_real, of_made = judge(real), judge(made)
    drift = of_real.square().mean() + of_made.square().mean()
    weights = shares.view(-1, 1, 1, 1)
    mixed = (weights * real + (1.0 - weights) * made).detach().requires_grad_(True)
    (gradients,) = torch.autograd.grad(judge(mixed).sum(), mixed, create_graph=True)
    penalty: Tensor = (gradients.flatten(1).norm(dim=1) - 1.0).square().mean()
    return of_made.mean() - of_real.mean() + drift_weight * drift + gradient_weight * penalty


def add_up(terms: Mapping[str, Tensor]) -> Tensor:
    """Add up the terms of a loss, each a scalar."""
    return torch.stack(tuple(terms.values())).sum()


def _errors(target: Tensor, reconstruction: Tensor, norm: Norm, is_relative: bool) -> Tensor:
    errors = _norm(target - reconstruction, norm)
    if is_relative:
        errors = errors / _norm(target, norm).mean((1, 2, 3), keepdim=True).detach()
    return errors


def _norm(values: Tensor, norm: Norm) -> Tensor:
    return values.abs() if norm == "l1" else values * values


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values


def _halve(images: Tensor) -> Tensor:
    size = (images.shape[-2] // 2, images.shape[-1] // 2)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _enlarge(maps: Tensor, size_yx: torch.Size) -> Tensor:
    return F.interpolate(maps, size=tuple(size_yx), mode="bilinear", align_corners=False)
