from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from training.networks.losses import (
    Norm,
    PerceptualLoss,
    Reduction,
    pixel_loss,
)
from training.networks.vgg import VggFeatures, random_vgg_weights

LAYERS = ("relu1_2", "relu2_2")
FEATURES = VggFeatures(random_vgg_weights(seed=1, layers=LAYERS, width=4), layers=LAYERS)


def images_of(*, seed: int, height: int = 24, width: int = 16, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((3, channels, height, width), generator=generator) * 2 - 1


TARGET, OTHER = images_of(seed=1), images_of(seed=2)


def loss_of(
    target: Tensor = TARGET,
    reconstruction: Tensor = OTHER,
    *,
    layer_weights: Mapping[str, float] | None = None,
    reduction: Reduction = "none",
    norm: Norm = "l1",
    is_relative: bool = True,
) -> Tensor:
    weights = {24: layer_weights or {"relu1_2": 1.0}}
    loss = PerceptualLoss(FEATURES, weights, norm=norm, is_relative=is_relative)
    return loss(target, reconstruction, resolution=24, reduction=reduction)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_loss_by_its_definition(norm: Norm) -> None:
    power = 1 if norm == "l1" else 2
    of_target, of_other = (FEATURES(images)["relu2_2"] for images in (TARGET, OTHER))
    by_hand = [
        (a - b).abs().pow(power).mean() / a.abs().pow(power).mean()
        for a, b in zip(of_target, of_other, strict=True)
    ]
    loss = loss_of(layer_weights={"relu2_2": 1.0}, norm=norm)
    torch.testing.assert_close(loss, torch.stack(by_hand))


def test_a_perfect_reconstruction_costs_nothing() -> None:
    assert torch.equal(loss_of(reconstruction=TARGET), torch.zeros(3))


def test_the_relative_loss_measures_against_the_target() -> None:
    there, back = loss_of(), loss_of(OTHER, TARGET)
    assert not torch.allclose(there, back, rtol=1e-3)
    ratio = there / loss_of(is_relative=False)
    means = FEATURES(TARGET)["relu1_2"].abs().mean((1, 2, 3))
    torch.testing.assert_close(ratio, 1 / means)


def test_reductions_agree() -> None:
    scores = loss_of()
    assert scores.shape == (3,)
    torch.testing.assert_close(loss_of(reduction="mean"), scores.mean())
    torch.testing.assert_close(loss_of(reduction="sum"), scores.sum())
    heatmaps = loss_of(reduction="pixelwise")
    assert heatmaps.shape == (3, 1, 24, 16)
    torch.testing.assert_close(heatmaps.mean((1, 2, 3)), scores)


def test_layers_are_averaged_by_weight() -> None:
    one, two = loss_of(), loss_of(layer_weights={"relu2_2": 1.0})
    image = loss_of(layer_weights={"image": 1.0})
    mixed = loss_of(layer_weights={"relu1_2": 1.0, "relu2_2": 0.5, "image": 2.0})
    torch.testing.assert_close(mixed, (one + 0.5 * two + 2.0 * image) / 3.5)


@pytest.mark.parametrize("layer", ["relu1_2", "relu2_2", "image"])
def test_heatmaps_point_at_the_fault(layer: str) -> None:
    spoilt = TARGET.clone()
    spoilt[1, :, 16:20, 2:6] = 1.0  # low and left in a tall image
    heatmaps = loss_of(reconstruction=spoilt, layer_weights={layer: 1.0}, reduction="pixelwise")
    y, x = divmod(int(heatmaps[1, 0].argmax()), 16)
    assert 15 <= y <= 20
    assert 1 <= x <= 6
    assert heatmaps[0].max() == 0


def test_only_the_reconstruction_is_differentiated() -> None:
    target, reconstruction = TARGET.clone().requires_grad_(), OTHER.clone().requires_grad_()
    loss = loss_of(target, reconstruction, reduction="mean")
    gradients = torch.autograd.grad(loss, [target, reconstruction], allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [False, True]
    assert gradients[1].abs().sum() > 0


def test_grey_images_are_compared_as_colour() -> None:
    target, other = images_of(seed=3, channels=1), images_of(seed=4, channels=1)
    in_colour = loss_of(target.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1))
    torch.testing.assert_close(loss_of(target, other), in_colour)


def growing(
    *, alpha: float | Tensor | None, is_blended: bool = True, reduction: Reduction = "none"
) -> Tensor:
    weights = {8: {"relu1_2": 1.0}, 16: {"relu2_2": 1.0}}
    loss = PerceptualLoss(FEATURES, weights, is_blended=is_blended)
    return loss(TARGET, OTHER, resolution=16, alpha=alpha, reduction=reduction)


def test_a_fade_blends_the_losses_of_both_resolutions() -> None:
    new = loss_of(layer_weights={"relu2_2": 1.0})
    former = loss_of(*(torch.nn.functional.avg_pool2d(images, 2) for images in (TARGET, OTHER)))
    torch.testing.assert_close(growing(alpha=0.3), 0.7 * former + 0.3 * new)
    torch.testing.assert_close(growing(alpha=torch.tensor(0.3)), 0.7 * former + 0.3 * new)
    torch.testing.assert_close(growing(alpha=0.0), former)
    torch.testing.assert_close(growing(alpha=1.0), new)
    assert torch.equal(growing(alpha=None), new)
    assert torch.equal(growing(alpha=0.3, is_blended=False), new)


def test_heatmaps_in_a_fade_have_the_size_of_the_image() -> None:
    heatmaps = growing(alpha=0.3, reduction="pixelwise")
    assert heatmaps.shape == (3, 1, 24, 16)
    torch.testing.assert_close(heatmaps.mean((1, 2, 3)), growing(alpha=0.3), rtol=0.05, atol=0.0)


def test_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer to compare"):
        PerceptualLoss(FEATURES, {24: {}})(TARGET, OTHER, resolution=24)


def test_the_pixel_loss_by_its_definition() -> None:
    target, other = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    other[1, 2, 3, 4] = 2.0
    torch.testing.assert_close(pixel_loss(target, other), torch.tensor(1 / 60))


def test_any_extractor_will_do() -> None:
    def brightness(images: Tensor, layers: Sequence[str], /) -> dict[str, Tensor]:
        return {layer: images.mean(1, keepdim=True) for layer in layers}

    target, other = torch.full((2, 3, 4, 5), 0.5), torch.full((2, 3, 4, 5), 0.25)
    loss = PerceptualLoss(brightness, {4: {"any": 2.0}})(target, other, resolution=4)
    assert loss.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("alpha", "calls"), [(None, 2), (0.3, 4)])
def test_two_reductions_need_the_features_of_each_image_once(
    alpha: float | None, calls: int
) -> None:
    seen: list[Tensor] = []

    def extract(images: Tensor, layers: Sequence[str], /) -> Mapping[str, Tensor]:
        seen.append(images)
        found: Mapping[str, Tensor] = FEATURES(images, layers)
        return found

    loss = PerceptualLoss(extract, {8: {"relu1_2": 1.0}, 16: {"relu2_2": 1.0}})
    compared = loss.compare(TARGET, OTHER, resolution=16, alpha=alpha)
    scores, heatmaps = compared.reduce("none"), compared.reduce("pixelwise")
    assert len(seen) == calls
    assert torch.equal(scores, growing(alpha=alpha))
    assert torch.equal(heatmaps, growing(alpha=alpha, reduction="pixelwise"))
