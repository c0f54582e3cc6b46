"""Reconstruction losses, which are also the anomaly score and the heatmap.

The relative perceptual L1 loss of Shvetsova et al. 2021 (arXiv 2006.13265, section 3.1): the
distance between features of an image and of its reconstruction, relative to the image's own.
The target comes first everywhere; nothing is differentiated with respect to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Norm: TypeAlias = Literal["l1", "l2"]
Reduction: TypeAlias = Literal["none", "mean", "sum", "pixelwise"]
LayerWeights: TypeAlias = Mapping[str, float]
Judge: TypeAlias = Callable[[Tensor], Tensor]


class Extractor(Protocol):
    """What turns images into features: `training.networks.vgg.VggFeatures`, or a like."""

    def __call__(self, images: Tensor, layers: Sequence[str], /) -> Mapping[str, Tensor]:
        """Map (N, 1 or 3, H, W) in [-1, 1] to each layer's (N, C, H', W')."""
        ...


def perceptual_loss(
    extract: Extractor,
    target: Tensor,
    reconstruction: Tensor,
    *,
    layer_weights: LayerWeights,
    reduction: Reduction = "mean",
    norm: Norm = "l1",
    is_relative: bool = True,
    target_features: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compare images by their features.

    Args:
        extract: Feature extractor; its features are compared as they come.
        target: (N, 1 or 3, H, W) float in [-1, 1], the true images.
        reconstruction: Same shape, what the network made of them.
        layer_weights: Weight of each layer; the layer `image` is the published pixel term.
        reduction: `none` gives (N,), the anomaly scores; `mean` and `sum` a scalar; `pixelwise`
            (N, 1, H, W), the heatmaps, bilinearly enlarged.
        norm: `l1` or `l2` (squared).
        is_relative: Divide by the mean norm of the target's features, image by image.
        target_features: What the extractor makes of the target, where that is known already.
    """
    layers = tuple(layer_weights)
    if target_features is None:
        with torch.no_grad():
            target_features = extract(target, layers)
    of_reconstruction = extract(reconstruction, layers)
    return feature_loss(
        target_features,
        of_reconstruction,
        layer_weights=layer_weights,
        size=(target.shape[-2], target.shape[-1]),
        reduction=reduction,
        norm=norm,
        is_relative=is_relative,
    )


def growing_perceptual_loss(
    extract: Extractor,
    target: Tensor,
    reconstruction: Tensor,
    *,
    weights_by_resolution: Mapping[int, LayerWeights],
    resolution: int,
    alpha: float | Tensor | None = None,
    is_blended: bool = True,
    reduction: Reduction = "mean",
    norm: Norm = "l1",
    is_relative: bool = True,
    target_features: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compare images with the layers of their resolution, blended with the former's in a fade.

    During a fade the loss is `(1 - alpha) * former + alpha * new`, the former of the images
    halved bilinearly and compared by the former resolution's layers (published as
    `use_smooth_pg`).

    Args:
        extract: As for `perceptual_loss`, and so are target, reconstruction, reduction, norm
            and is_relative.
        target: (N, 1 or 3, resolution, resolution).
        reconstruction: Same shape.
        weights_by_resolution: Layer weights for each resolution in px.
        resolution: Side of the images in px.
        alpha: Share of this resolution during its fade-in; None once it stabilizes.
        is_blended: Whether a fade blends the losses too, not only the images.
        reduction: As for `perceptual_loss`.
        norm: As for `perceptual_loss`.
        is_relative: As for `perceptual_loss`.
        target_features: As for `perceptual_loss`, by the layers of this resolution.
    """
    new = perceptual_loss(
        extract,
        target,
        reconstruction,
        layer_weights=weights_by_resolution[resolution],
        reduction=reduction,
        norm=norm,
        is_relative=is_relative,
        target_features=target_features,
    )
    if alpha is None or not is_blended:
        return new
    former = perceptual_loss(
        extract,
        _halve(target),
        _halve(reconstruction),
        layer_weights=weights_by_resolution[resolution // 2],
        reduction=reduction,
        norm=norm,
        is_relative=is_relative,
    )
    if reduction == "pixelwise":
        former = _enlarge(former, (target.shape[-2], target.shape[-1]))
    return (1.0 - alpha) * former + alpha * new


def feature_loss(
    target: Mapping[str, Tensor],
    reconstruction: Mapping[str, Tensor],
    *,
    layer_weights: LayerWeights,
    size: tuple[int, int],
    reduction: Reduction = "mean",
    norm: Norm = "l1",
    is_relative: bool = True,
) -> Tensor:
    """Compare features: the weighted mean of the layers' errors.

    Args:
        target: Each layer's (N, C, H', W').
        reconstruction: Same shapes.
        layer_weights: Weight of each layer.
        size: Height and width of the heatmaps in px, for `pixelwise`.
        reduction: As for `perceptual_loss`.
        norm: As for `perceptual_loss`.
        is_relative: As for `perceptual_loss`.

    Raises:
        ValueError: If no layer is weighted.
    """
    if not layer_weights:
        raise ValueError("no layer to compare: give at least one, such as {'relu3_2': 1.0}")
    weighted = []
    for layer, weight in layer_weights.items():
        errors = _errors(target[layer], reconstruction[layer], norm, is_relative)
        if reduction == "pixelwise":
            weighted.append(weight * _enlarge(errors.mean(1, keepdim=True), size))
        else:
            weighted.append(weight * errors.mean((1, 2, 3)))
    total = torch.stack(weighted).sum(0) / sum(layer_weights.values())
    return _reduce(total, reduction)


def pixel_loss(
    target: Tensor, reconstruction: Tensor, *, norm: Norm = "l1", reduction: Reduction = "mean"
) -> Tensor:
    """Compare images by their pixels alone, as in the paper's ablation.

    Args:
        target: (N, C, H, W) float in [-1, 1].
        reconstruction: Same shape.
        norm: `l1` or `l2` (squared).
        reduction: `none` gives (N,), `mean` and `sum` a scalar, `pixelwise` (N, C, H, W).
    """
    errors = _norm(target - reconstruction, norm)
    return errors if reduction == "pixelwise" else _reduce(errors.mean((1, 2, 3)), reduction)


def adversarial_loss(judge: Judge, reconstruction: Tensor) -> Tensor:
    """How unreal reconstructions look: Wasserstein's generator loss (Arjovsky et al. 2017).

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
    """What a discriminator makes smaller (Gulrajani et al. 2017, arXiv 1704.00028, equation 3).

    Wasserstein's distance, the penalty on gradients of other length than 1 between real and made
    images, and one that keeps judgements near 0 (Karras et al. 2017, arXiv 1710.10196, A.1), here
    of made images too, as in the public code.

    Args:
        judge: Discriminator: (N, C, H, W) -> (N,), higher is more real.
        real: (N, C, H, W) images.
        made: Same shape, their reconstructions; nothing is differentiated with respect to them.
        shares: (N,) in [0, 1): how much of the real image is in the mixture whose gradient counts.
        gradient_weight: Of the gradients' penalty.
        drift_weight: Of the squared judgements.
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
    """The sum of a loss's terms, each a scalar."""
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


def _enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
