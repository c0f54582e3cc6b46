from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.support.vgg import images_of, small_weights
from training.networks.vgg import (
    LAYERS,
    VggFeatures,
    convolutions_needed,
    layer_at,
    measure_statistics,
    random_vgg_weights,
)
from training.networks.vgg_weights import load_vgg


def test_layers_reach_no_deeper_than_needed() -> None:
    assert convolutions_needed(["relu2_1", "relu1_2"]) == ("1_1", "1_2", "2_1")
    assert convolutions_needed(["image"]) == ()
    assert len(convolutions_needed(["relu5_4"])) == len(LAYERS) == 16
    with pytest.raises(ValueError, match="no layer 'relu6_1'"):
        convolutions_needed(["relu6_1"])
    features = VggFeatures(small_weights(), layers=["relu2_1"])
    assert not any("conv2_2" in key for key in features.state_dict())


def test_grey_is_repeated_and_the_image_can_be_had() -> None:
    features = VggFeatures(small_weights(), layers=["relu1_2", "relu3_1"])
    grey = images_of(channels=1)
    found, in_colour = features(grey, ["relu3_1", "image"]), features(grey.repeat(1, 3, 1, 1))
    assert set(in_colour) == {"relu1_2", "relu3_1"}
    torch.testing.assert_close(found["relu3_1"], in_colour["relu3_1"])
    assert found["image"].shape == (2, 3, 24, 16)
    black = features(torch.full((1, 3, 2, 2), -1.0), ["image"])["image"][0, :, 0, 0]
    torch.testing.assert_close(
        black, torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    )


def test_nothing_is_trained_but_gradients_pass() -> None:
    features, images = (
        VggFeatures(small_weights(), layers=["relu3_1"]),
        images_of().requires_grad_(),
    )
    features(images)["relu3_1"].sum().backward()
    assert images.grad is not None
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_channels_last_moves_no_result() -> None:
    features, images = VggFeatures(small_weights(), layers=["relu3_1"]), images_of()
    expected = features(images)["relu3_1"]
    features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it alone
    actual = features(images.contiguous(memory_format=torch.channels_last))["relu3_1"]
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_a_state_carries_weights_padding_and_statistics(tmp_path: Path, padding: Any) -> None:
    statistics = {"relu2_1": (torch.linspace(0, 1, 8), torch.linspace(1, 2, 8))}
    original = VggFeatures(
        small_weights(), layers=["relu2_1", "relu3_1"], padding=padding, statistics=statistics
    )
    path = tmp_path / "features.safetensors"
    safetensors.torch.save_file(original.state_dict(), path)
    images = images_of()
    expected = original(images)
    state = safetensors.torch.load_file(path)
    for again in (
        VggFeatures.from_state(state, layers=["relu2_1", "relu3_1"]),
        load_vgg(str(path), layers=["relu2_1", "relu3_1"]),
    ):
        assert again.padding == padding
        for layer, values in again(images).items():
            assert torch.equal(values, expected[layer])
    shallow = VggFeatures.from_state(state, layers=["relu1_2"])
    assert not any("conv2" in key for key in shallow.state_dict())


def test_random_weights_follow_their_seed() -> None:
    first, again, other = (
        random_vgg_weights(seed=seed, layers=["relu2_1"], width=4) for seed in (1, 1, 2)
    )
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1_1.weight"], other["conv1_1.weight"])
    shallow = random_vgg_weights(seed=1, layers=["relu1_1"], width=4)
    assert torch.equal(shallow["conv1_1.weight"], first["conv1_1.weight"])
    full = random_vgg_weights(seed=1, layers=["relu3_1"])
    assert full["conv3_1.weight"].shape == (256, 128, 3, 3)


def test_random_features_neither_die_nor_explode() -> None:
    layers = ["relu1_2", "relu2_2", "relu3_2", "relu4_2"]
    found = load_vgg("random", layers=layers, seed=0, width=32)(images_of(height=32, width=48))
    for values in found.values():
        assert 0.1 < values.std() < 10.0
        is_dead = values.amax((0, 2, 3)) == 0
        assert is_dead.float().mean() < 0.2


def test_measured_statistics_make_channels_standard() -> None:
    features = VggFeatures(small_weights(), layers=["relu1_2", "relu2_1"])
    batches = [images_of(), images_of(height=16, width=20)]
    raw = [features(batch)["relu1_2"].permute(1, 0, 2, 3).flatten(1) for batch in batches]
    statistics = measure_statistics(features, iter(batches))
    pooled = torch.cat(raw, 1)
    mean, scale = (value.flatten() for value in statistics["relu1_2"])
    torch.testing.assert_close(mean, pooled.mean(1))
    moves = pooled.std(1) > 0
    torch.testing.assert_close(scale[moves], pooled.std(1, correction=0)[moves])
    assert torch.equal(scale[~moves], torch.ones(int((~moves).sum())))
    features.normalize_by(statistics)
    torch.testing.assert_close(
        features(batches[0])["relu1_2"].permute(1, 0, 2, 3).flatten(1),
        (raw[0] - mean[:, None]) / scale[:, None],
    )
    with pytest.raises(ValueError, match="normalised already"):
        measure_statistics(features, batches)


def test_statistics_of_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        measure_statistics(VggFeatures(small_weights(), layers=["relu1_2"]), [])


def test_the_layer_grows_with_the_resolution() -> None:
    layers = [layer_at(resolution) for resolution in (8, 16, 32, 64, 128, 256)]
    assert layers == ["relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2", "relu5_4"]
    for resolution in (4, 48):
        with pytest.raises(ValueError, match=f"no layer suits {resolution} px"):
            layer_at(resolution)
