from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import WeightsError
from tests.support.vgg import images_of, small_weights
from training.networks import vgg_weights
from training.networks.vgg import CONVOLUTIONS
from training.networks.vgg_weights import convert_weights, load_vgg, read_statistics

TORCHVISION_INDICES = (0, 2, 5, 7, 10)
MIXING = torch.tensor([[0.0, 0.0, 255.0], [0.0, 255.0, 0.0], [255.0, 0.0, 0.0]])
OFFSET = torch.tensor([-104.0, -117.0, -124.0])


def features_by_hand(
    colours: Tensor, weights: dict[str, Tensor], pad: Callable[[Tensor], Tensor]
) -> Tensor:
    """relu3_1 of (N, 3, H, W) as the first convolution takes them."""
    values = colours
    for name in ("1_1", "1_2", "2_1", "2_2", "3_1"):
        if name in {"2_1", "3_1"}:
            values = F.max_pool2d(values, 2)
        weight, bias = weights[f"conv{name}.weight"], weights[f"conv{name}.bias"]
        values = F.relu(F.conv2d(pad(values), weight, bias))
    return values


def zeros_around(values: Tensor) -> Tensor:
    return F.pad(values, (1, 1, 1, 1))


def mirrored(values: Tensor) -> Tensor:
    return F.pad(values, (1, 1, 1, 1), mode="reflect")


def torchvision_form(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        f"features.{index}.{kind}": weights[f"conv{name}.{kind}"]
        for index, name in zip(TORCHVISION_INDICES, CONVOLUTIONS, strict=False)
        for kind in ("weight", "bias")
    } | {"classifier.0.weight": torch.zeros(2, 2)}


def normalised_form(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"0.weight": MIXING.view(3, 3, 1, 1), "0.bias": OFFSET} | {
        f"{index}.{kind}": weights[f"conv{name}.{kind}"]
        for index, name in zip((2, 5, 9, 12, 16), CONVOLUTIONS, strict=False)
        for kind in ("weight", "bias")
    }


def distilled_form(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return (
        {"conv0.weight": MIXING.view(3, 3, 1, 1), "conv0.bias": OFFSET}
        | {key.replace("_", ""): value for key, value in weights.items()}
        | {"conv11_aux.weight": torch.zeros(8, 4, 1, 1)}
    )


def save(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def test_torchvisions_file_is_accepted_as_it_is(tmp_path: Path) -> None:
    weights = small_weights()
    path = save(tmp_path / "vgg19.pth", torchvision_form(weights))
    images = images_of()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    by_hand = features_by_hand(((images + 1) / 2 - mean) / std, weights, zeros_around)
    found = load_vgg(path, layers=["relu3_1"])(images)
    torch.testing.assert_close(found["relu3_1"], by_hand)
    assert by_hand.shape == (2, 16, 6, 4)


@pytest.mark.parametrize("form", ["normalised", "distilled"])
def test_forms_with_a_leading_convolution_reflect_their_borders(tmp_path: Path, form: str) -> None:
    weights = small_weights()
    content: dict[str, Any] = (
        normalised_form(weights) if form == "normalised" else {"model": distilled_form(weights)}
    )
    images = images_of()
    colours = torch.einsum("oi,niyx->noyx", MIXING, (images + 1) / 2) + OFFSET.view(3, 1, 1)
    by_hand = features_by_hand(colours, weights, mirrored)
    found = load_vgg(save(tmp_path / "vgg.pth", content), layers=["relu3_1"])(images)
    torch.testing.assert_close(found["relu3_1"], by_hand, rtol=1e-4, atol=1e-3)


def test_other_networks_are_no_vgg() -> None:
    assert convert_weights({"layer1.weight": torch.zeros(3)}) is None
    assert convert_weights({"0.weight": torch.zeros(8, 3, 3, 3)}) is None


def test_statistics_are_read_by_layer(tmp_path: Path) -> None:
    pair = (torch.ones(1, 4, 1, 1), torch.full((1, 4, 1, 1), 2.0))
    path = save(tmp_path / "statistics.pt", {"r12": pair, "c12": pair, "p1": pair})
    assert list(read_statistics(Path(path))) == ["relu1_2"]
    weights = save(tmp_path / "vgg19.pth", torchvision_form(small_weights()))
    plain = load_vgg(weights, layers=["relu1_2"])(images_of())["relu1_2"]
    normalised = load_vgg(weights, layers=["relu1_2"], statistics=path)(images_of())["relu1_2"]
    torch.testing.assert_close(normalised, (plain - 1) / 2)


def test_statistics_of_other_weights_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "statistics.pt", {"r12": (torch.zeros(64), torch.ones(64))})
    weights = save(tmp_path / "vgg19.pth", torchvision_form(small_weights()))
    with pytest.raises(WeightsError, match=r"statistics.pt: relu1_2 has 4 channels here, 64"):
        load_vgg(weights, layers=["relu1_2"], statistics=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights at all", "no readable file of tensors"),
        ([1, 2], "holds a list"),
        ({"layer1.weight": torch.zeros(3)}, r"no VGG19 of a known form \(tensors: layer1.weight"),
        (
            torchvision_form(small_weights()),
            "lacks conv3_2, which relu1_2, relu4_2 cannot do without",
        ),
    ],
)
def test_files_that_will_not_do_are_named(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)
    with pytest.raises(WeightsError, match=rf"weights.pth: .*{message}"):
        load_vgg(str(path), layers=["relu1_2", "relu4_2"])


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=rf"{name}: does not exist. Give torchvision's"):
        load_vgg(str(tmp_path / name), layers=["relu1_2"])


def test_a_download_is_made_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Path(save(tmp_path / "vgg19-published.pth", torchvision_form(small_weights())))
    digest = hashlib.sha256(remote.read_bytes()).hexdigest()
    monkeypatch.setattr(vgg_weights, "TORCHVISION_URL", remote.as_uri())
    monkeypatch.setattr(vgg_weights, "TORCHVISION_SHA256_PREFIX", "0" * 8)
    cache = str(tmp_path / "cache")
    with pytest.raises(WeightsError, match=r"could not be fetched .*hash"):
        load_vgg("download", layers=["relu1_2"], cache_folder=cache)
    monkeypatch.setattr(vgg_weights, "TORCHVISION_SHA256_PREFIX", digest[:8])
    first = load_vgg("download", layers=["relu1_2"], cache_folder=cache)
    remote.unlink()
    again = load_vgg("download", layers=["relu1_2"], cache_folder=cache)
    assert torch.equal(first(images_of())["relu1_2"], again(images_of())["relu1_2"])
    with pytest.raises(WeightsError, match="could not be fetched"):
        load_vgg("download", layers=["relu1_2"], cache_folder=str(tmp_path / "other"))


def test_real_weights_agree_in_both_forms(shared_data: Path) -> None:
    folder, images = shared_data / "weights", images_of(height=64, width=48)
    mapped, folded = (
        load_vgg(str(folder / name), layers=["relu3_1"])
        for name in ("vgg19_relu3_1_torchvision_names.pth", "vgg_normalised_conv3_1.pth")
    )
    for key, value in mapped.state_dict().items():
        if key.startswith("conv"):
            torch.testing.assert_close(folded.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    # They pad differently, so only what the border does not reach is equal.
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(
        folded(images)["relu3_1"][inner], mapped(images)["relu3_1"][inner], rtol=1e-3, atol=1e-3
    )


def test_real_distilled_weights_reach_relu4_2(shared_data: Path) -> None:
    path = shared_data / "weights" / "vgg19_16x_5SE.pth"
    found = load_vgg(str(path), layers=["relu4_2"])(images_of(channels=1, height=64, width=48))
    assert found["relu4_2"].shape == (2, 128, 8, 6)
    assert found["relu4_2"].std() > 0.1
