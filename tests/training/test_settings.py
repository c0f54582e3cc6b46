"""Settings and presets: what is refused, and the published numbers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel

from pipeline.errors import SettingsError
from training.learning.state import build_autoencoder
from training.networks.growth import total_iterations
from training.networks.vgg import IMAGE
from training.presets import PRESETS, Preset, TrainChanges, load_preset, write_sums
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
    changed = load_preset("demo", {"seed": 5, "loss": {"vgg_seed": 9}})
    assert (changed.seed, changed.loss.vgg_seed) == (5, 9)
    assert changed.loss.layers == before.loss.layers
    assert load_preset("demo") == before


def test_unknown_presets_and_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"camelyon17: no such preset\. Choose demo"):
        load_preset("camelyon17")
    with pytest.raises(SettingsError, match=r"growth\.batchsize"):
        load_preset("demo", {"growth": {"batchsize": 3}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"growth": {"final_resolution": 48}}, "doubling 16 px never meets 48 px"),
        ({"network": {"latent_resolution": 32, "channels": 4}}, "begins at 32 px"),
        ({"loss": {"layers": {16: {"relu1_2": 1}}}}, "nothing of 32 px"),
        ({"loss": {"layers": {16: {"relu9_2": 1}, 32: {"relu1_2": 1}}}}, "no layer 'relu9_2'"),
        ({"images": {"crop_px": 20}}, "20 px, less than growth.final_resolution 32 px"),
        ({"network": {"channels": (4, 4)}}, "2 channel counts for 3 resolutions"),
        ({"loss": {"vgg_width": 12}}, "multiple of 8"),
        ({"seed": -3}, "seed: -3 is not allowed .*greater than or equal to 0"),
        (
            {"optimiser": {"learning_rate": float("inf")}},
            "learning_rate: inf is not allowed .*finite",
        ),
        ({"growth": {"batch_sizes": "many"}}, "growth.batch_sizes: 'many' .*integer.*; or: .*dict"),
        ({"network": {"channels": (4, 0)}}, r"network.channels.*`--train.network.channels`"),
        ({"network": "residual9"}, "network: 'residual9' is not allowed"),
        (
            {"loss": {"layers": ("relu1_2",) * 3}},
            r"loss.layers: 3 entries for 2 res.*\(16, 32\) px",
        ),
        ({"growth": {"fade_in_iterations": (9, 9)}}, "2 entries for 1 resolutions"),
        ({"loss": {"layers": ("relu1_3",)}}, "no layer 'relu1_3'"),
        ({"loss": {"layers": (5,)}}, "loss.layers: 5 is not a layer"),
        ({"loss": {"layers": ("abc*relu1_1",)}}, "loss.layers: 'abc.relu1_1' is not a layer"),
        ({"loss": {"layers": ("0*relu1_1",)}}, "loss.layers: .* weight of 0. Leave that layer"),
        ({"loss": {"layers": ("relu1_1+relu1_1",)}}, "names a layer twice. Add up its weights"),
        ({"growth": {"final_resolution": [1]}}, "growth.final_resolution.*`--train.growth.final-"),
        ({"growth": {"bogus_resolution": 1}}, "growth.bogus_resolution: no such setting"),
        ("x", "settings: 'x' is no mapping"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load_preset("demo", changes)


def test_pixels_count_as_one_more_layer() -> None:
    settings = load_preset("demo", {"loss": {"pixel_weight": 0.5}})
    assert settings.loss.weights_by_resolution()[16] == {IMAGE: 0.5, "relu1_2": 1.0}
    assert settings.loss.layer_names() == ("relu1_2", "relu2_1")


def test_flat_settings_name_every_value() -> None:
    flat = flatten(load_preset("demo"))
    assert flat["growth.stabilize_iterations.16"] == "100"
    assert flat["loss.layers.32.relu2_1"] == "1.0"


def test_the_form_offers_every_preset() -> None:
    assert get_args(Preset) == PRESETS


def test_lists_of_a_form_are_read_by_resolution() -> None:
    form = TrainChanges(
        network={"channels": [4, 8, 16]},
        growth={"stabilize_iterations": [5, 7], "fade_in_iterations": [3], "batch_sizes": [9]},
        loss={"layers": ["relu1_1", "relu1_2+0.5*relu2_1"]},
    )
    changed = load_preset("demo", form)
    assert changed.network.channels == (4, 8, 16)
    assert changed.growth.stabilize_iterations == {16: 5, 32: 7}
    assert changed.growth.fade_in_iterations == {32: 3}
    assert changed.growth.batch_sizes == {16: 9, 32: 9}
    assert changed.loss.layers == {16: {"relu1_1": 1.0}, 32: {"relu1_2": 1.0, "relu2_1": 0.5}}
    assert write_sums(changed) == ["relu1_1", "relu1_2+0.5*relu2_1"]


def test_a_form_changes_nothing_but_what_is_filled_in() -> None:
    for name in PRESETS:
        assert load_preset(name, TrainChanges(), None) == load_preset(name)
    changed = load_preset("quick", TrainChanges(images={"flips_at_random": False}))
    assert not changed.images.flips_at_random
    assert changed.growth == load_preset("quick").growth


def _list_fields(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Every setting by its dotted path, as the schema describes it."""
    schema = model.model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    for name, field in schema["properties"].items():
        if "$ref" in field:
            inner = schema["$defs"][field["$ref"].rpartition("/")[2]]["properties"]
            found |= {f"{name}.{below}": each for below, each in inner.items()}
        else:
            found[name] = field
    return found


def test_every_setting_is_a_typed_and_documented_field_of_the_form() -> None:
    fields = _list_fields(TrainChanges)
    assert fields.keys() == _list_fields(TrainSettings).keys() - {"seed", "loss.vgg_weights"}
    for field in fields.values():
        if "anyOf" in field:  # a switch without "None" would send "off" when nobody touched it
            assert [each["type"] for each in field["anyOf"]] == ["boolean", "null"]
            assert field["default"] is None
        else:
            kind = field["items"]["type"] if field["type"] == "array" else field["type"]
            assert kind in {"integer", "number", "string"}  # nothing is typed as JSON
        assert " Default: " in field["description"]
        assert not field["description"].startswith((" ", "None"))


def test_a_switch_that_nobody_touches_changes_nothing() -> None:
    switches = [
        n for n, field in _list_fields(TrainSettings).items() if field.get("type") == "boolean"
    ]
    assert len(switches) == 9
    assert all("anyOf" in _list_fields(TrainChanges)[name] for name in switches)


def test_a_form_says_where_defaults_come_from() -> None:
    described = TrainChanges.model_json_schema()["$defs"]
    rate = described["Optimiser"]["properties"]["learning_rate"]["description"]
    assert rate.endswith("Default: the preset's, or 0.001.")
    assert described["Optimiser"]["properties"]["beta1"]["description"].endswith("Default: 0.9.")
    assert "seed" not in TrainChanges.model_fields  # `--seed` and `--vgg-weights` are flows' own
    assert "vgg_weights" not in described["Loss"]["properties"]
