"""The published definitions, number by number.

Two sets of recordings: the public code's own modules at work (with the real data), and small ones
of ours in `recordings/`, which hold the same definitions fast for those who lack the former. Ours
are made anew by `python -m tests.training.recordings.make`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.published import load_published_weights
from tests.training.recordings import make
from training.networks.autoencoder import Autoencoder, mix_input
from training.networks.losses import Norm, PerceptualLoss
from training.networks.vgg import VggFeatures
from training.networks.vgg_weights import load_vgg

RECORDINGS = Path(make.__file__).parent
NETWORKS = [
    f"net_{name}"
    for name in (
        "residual18_latent1_ch1_stab16",
        "residual18_latent1_ch1_stab32",
        "residual18_latent1_ch1_trns32",
        "residual18_latent8_ch3_stab8",
        "residual18_latent8_ch3_stab16",
        "residual18_latent8_ch3_trns16",
        "residual9_latent4_ch3_stab8",
        "residual9_latent4_ch3_stab16",
        "residual9_latent4_ch3_trns16",
        "regular_latent4_ch3_stab8",
        "regular_latent4_ch3_stab16",
        "regular_latent4_ch3_trns16",
    )
]
LOSSES = ["loss_r31_ch3_32", "loss_r12_ch1_24", "loss_r22_r31_ch3_20", "loss_r21_ch1_64"]


@pytest.fixture(scope="session")
def parity(shared_data: Path) -> Path:
    folder = shared_data / "parity"
    if not folder.is_dir():
        pytest.skip(f"no recordings of the public code at {folder}")
    return folder


def assert_equal_to_1e5(actual: Tensor, published: NDArray[np.float32]) -> None:
    """Within 1e-5, of the value itself where that is above 1."""
    assert actual.shape == published.shape
    difference = (actual.detach().numpy() - published).__abs__()
    assert (difference / np.maximum(1.0, abs(published))).max() <= 1e-5


def described(parity: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    entries = json.loads((parity / "index.json").read_text())
    entry = next(entry for entry in entries if entry["file"] == f"{name}.npz")
    with np.load(parity / f"{name}.npz") as recording:
        return entry, dict(recording)


def layer_named(published: str) -> str:
    return f"relu{published[1]}_{published[2]}"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_the_public_code(parity: Path, name: str) -> None:
    entry, recording = described(parity, name)
    network = Autoencoder(
        final_resolution=entry["max_resolution"],
        image_channels=entry["channels"],
        latent_resolution=entry["latent_res"],
        latent_channels=entry["latent_dim"],
        channels=entry["inner_dims"],
        form=entry["kind"],
    )
    states = {
        side: {
            key.removeprefix(f"{side}/"): torch.from_numpy(value)
            for key, value in recording.items()
            if key.startswith(f"{side}/")
        }
        for side in ("enc", "dec")
    }
    load_published_weights(network, encoder=states["enc"], decoder=states["dec"])
    resolution, alpha = entry["resolution"], entry["alpha"]
    images = torch.from_numpy(recording["x"])
    latents = network.encode(images, resolution=resolution, alpha=alpha)
    assert_equal_to_1e5(latents, recording["z"])
    assert_equal_to_1e5(network(images, resolution=resolution, alpha=alpha), recording["y"])


def published_losses(recording: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The recorded variants: norm1_l11_rel1_img0.7_mean and so on."""
    for key in recording:
        if key.startswith("norm"):
            normalized, norm, relative, image, reduction = key.split("_")
            yield (
                key,
                {
                    "is_normalized": normalized == "norm1",
                    "norm": "l1" if norm == "l11" else "l2",
                    "is_relative": relative == "rel1",
                    "image_weight": float(image.removeprefix("img")),
                    "reduction": reduction,
                },
            )


def published_features(shared_data: Path, layers: list[str], *, is_normalized: bool) -> VggFeatures:
    weights = shared_data / "weights"
    statistics = weights / "vgg19_ILSVRC2012_object_detection_mean_var.pt"
    return load_vgg(
        str(weights / "vgg19_relu3_1_torchvision_names.pth"),
        layers=layers,
        statistics=str(statistics) if is_normalized else None,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_the_public_code(shared_data: Path, parity: Path, name: str) -> None:
    entry, recording = described(parity, name)
    weights = {layer_named(layer): weight for layer, weight in entry["layers"].items()}
    extractors = {
        flag: published_features(shared_data, list(weights), is_normalized=flag)
        for flag in (False, True)
    }
    variants = list(published_losses(recording))
    assert len(variants) >= 48
    for key, variant in variants:
        pixel_term = {"image": variant["image_weight"]} if variant["image_weight"] else {}
        measure = PerceptualLoss(
            extractors[variant["is_normalized"]],
            {1: weights | pixel_term},
            norm=variant["norm"],
            is_relative=variant["is_relative"],
        )
        loss = measure(
            torch.from_numpy(recording["x"]),
            torch.from_numpy(recording["y"]),
            resolution=1,
            reduction=variant["reduction"],
        )
        assert_equal_to_1e5(loss, recording[key])


def test_loss_blended_in_a_fade_equals_the_public_code(shared_data: Path, parity: Path) -> None:
    entry, recording = described(parity, "loss_smooth_growth")
    by_resolution = {int(side): {layer_named(name): 1.0} for side, name in entry["layer"].items()}
    layers = [layer for weights in by_resolution.values() for layer in weights]
    features = published_features(shared_data, layers, is_normalized=True)
    loss = PerceptualLoss(features, by_resolution)(
        torch.from_numpy(recording["x"]),
        torch.from_numpy(recording["y"]),
        resolution=entry["resolution"],
        alpha=entry["alpha"],
        reduction="none",
    )
    assert_equal_to_1e5(loss, recording["loss"])


def test_mixed_input_equals_the_public_code(parity: Path) -> None:
    _, recording = described(parity, "input_mix")
    images = torch.from_numpy(recording.pop("x"))
    assert len(recording) == 4
    for key, mixed in recording.items():
        phase, alpha = key.split("_alpha")
        share = None if alpha == "None" else float(alpha)
        assert_equal_to_1e5(mix_input(images, resolution=int(phase[4:]), alpha=share), mixed)


@pytest.mark.parametrize("name", make.NETWORKS)
def test_networks_equal_our_recordings(name: str) -> None:
    with np.load(RECORDINGS / f"{name}.npz") as recording:
        for key, value in make.record_network(name, recording["images"]).items():
            assert_equal_to_1e5(torch.from_numpy(value), recording[key])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_losses_equal_our_recordings(norm: Norm) -> None:
    with np.load(RECORDINGS / "losses.npz") as recording:
        made = make.record_losses(recording["target"], recording["reconstruction"], norm)
        for key, value in made.items():
            assert_equal_to_1e5(torch.from_numpy(value), recording[key])
