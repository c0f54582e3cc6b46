"""Settings and presets: what is refused, and the published numbers."""

from __future__ import annotations

from typing import get_args

import pytest

from pipeline.errors import SettingsError
from training.learning.state import build_autoencoder
from training.networks.growth import total_iterations
from training.networks.vgg import IMAGE
from training.presets import PRESETS, Preset, load_preset
from training.settings import TrainSettings, flatten


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_networks_and_survive_json(name: str) -> None:
    settings = load_preset(name)
    build_autoencoder(settings, image_channels=3)
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings


# Iterations, batch, learning rate, last layer and channels of the public configurations.
@pytest.mark.parametrize(
    ("name", "steps", "batch", "rate", "layer", "channels"),
    [
        ("camelyon16-paper", 20_000 * 4 + 8_666, 128, 1e-3, "relu4_2", 4),
        ("nih-subset-paper", 20_000 * 6 + 3_500, 128, 1e-3, "relu4_2", (16,) * 5),
        ("nih-pa-paper", 20_000 * 6 + 10_000, 128, 1e-3, "relu3_2", (16,) * 5),
        ("nih-ap-paper", 20_000 * 6 + 7_000, 56, 5e-4, "relu3_2", (32, 32, 64, 64, 64)),
    ],
)
def test_paper_presets_hold_the_published_numbers(
    name: str, steps: int, batch: int, rate: float, layer: str, channels: int | tuple[int, ...]
) -> None:
    settings = load_preset(name)
    stages = settings.growth.plan()
    assert total_iterations(stages) == steps
    assert {stage.batch_size for stage in stages} == {batch}
    assert settings.optimiser.learning_rate == rate
    assert list(settings.loss.layers[64]) == [layer]
    assert settings.network.channels == channels
    assert settings.network.form == "residual18"


def test_changes_reach_nested_settings_and_leave_the_preset_alone() -> None:
    before = load_preset("demo")
    changed = load_preset("demo", seed=5, loss__vgg_seed=9)
    assert (changed.seed, changed.loss.vgg_seed) == (5, 9)
    assert changed.loss.layers == before.loss.layers
    assert load_preset("demo") == before


def test_unknown_presets_and_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"camelyon17: no such preset\. Choose demo"):
        load_preset("camelyon17")
    with pytest.raises(SettingsError, match=r"growth\.batchsize"):
        load_preset("demo", growth__batchsize=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"growth__final_resolution": 48}, "doubling 16 px never meets 48 px"),
        ({"network__latent_resolution": 32, "network__channels": 4}, "begins at 32 px"),
        ({"loss__layers": {16: {"relu1_2": 1}}}, "nothing of 32 px"),
        ({"loss__layers": {16: {"relu9_2": 1}, 32: {"relu1_2": 1}}}, "no layer 'relu9_2'"),
        ({"images__crop_px": 20}, "20 px, less than growth.final_resolution 32 px"),
        ({"network__channels": (4, 4)}, "2 channel counts for 3 resolutions"),
        ({"loss__vgg_width": 12}, "multiple of 8"),
        ({"seed": -3}, "seed: -3 will not do .*greater than or equal to 0"),
        ({"optimiser__learning_rate": float("inf")}, "learning_rate: inf will not do .*finite"),
        ({"growth__batch_sizes": "many"}, "growth.batch_sizes: 'many' .*integer.*; or: .*dict"),
        ({"network__channels": "[4, 0]"}, r"network.channels.*`--changes.network__channels.* V"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load_preset("demo", **changes)


def test_pixels_count_as_one_more_layer() -> None:
    settings = load_preset("demo", loss__pixel_weight=0.5)
    assert settings.loss.weights_by_resolution()[16] == {IMAGE: 0.5, "relu1_2": 1.0}
    assert settings.loss.layer_names() == ("relu1_2", "relu2_1")


def test_flat_settings_name_every_value() -> None:
    flat = flatten(load_preset("demo"))
    assert flat["growth.stabilize_iterations.16"] == "100"
    assert flat["loss.layers.32.relu2_1"] == "1.0"


def test_the_form_offers_every_preset() -> None:
    assert get_args(Preset) == PRESETS


def test_a_mapping_can_be_given_as_json() -> None:
    layers = '{"16": {"relu1_1": 1}, "32": {"relu2_1": 1}}'
    assert load_preset("demo", loss__layers=layers).loss.layers[16] == {"relu1_1": 1.0}
    with pytest.raises(SettingsError, match=r"loss__layers: not JSON .*: \{16"):
        load_preset("demo", loss__layers="{16")


def test_lists_and_nothing_can_be_given_as_json() -> None:
    changed = load_preset(
        "demo",
        network__channels="[4, 8, 16]",
        optimiser__betas="[0.5, 0.99]",
        loss__feature_statistics="null",
    )
    assert changed.network.channels == (4, 8, 16)
    assert changed.optimiser.betas == (0.5, 0.99)
    assert changed.loss.feature_statistics is None
