"""Settings by name.

The presets named `...-paper` hold the hyperparameters of the public code of Shvetsova et al. 2021
(`ninatu/anomaly_detection` at ada9201, `configs/dpa/*/final/pg`): Adam's, batch sizes,
iterations, layers and channels. Its seeds are not taken over, as other code draws other numbers;
its crop and resize of radiographs belong to the ingest. Its features are normalised by a
file of statistics of torchvision's weights, which `loss.feature_statistics` takes by path; the
presets measure them on the training images.

`tiles-256` and `radiographs-256` go on where these end, and are not tuned: the layers by
`training.networks.vgg.layer_at`, latents of 1/48 (as for tiles of 64 px) and 1/1024 of an image's
values, smaller batches at the larger resolutions. They end at 128 px with a
`growth.final_resolution` of 128.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import cleandoc
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from pipeline.errors import SettingsError
from training.networks.vgg import layer_at
from training.settings import GrowthSettings, TrainSettings

_NIH_LAYERS: Final = {8: {"relu1_2": 1}, 16: {"relu2_2": 1}, 32: {"relu3_2": 1}}
_NIH_GROWTH: Final = {"initial_resolution": 8, "final_resolution": 64}
_NIH_NETWORK: Final = {"latent_resolution": 1, "latent_channels": 16, "channels": (16,) * 5}
_LARGE_GROWTH: Final = {
    "final_resolution": 256,
    "batch_sizes": {8: 128, 16: 128, 32: 128, 64: 128, 128: 64, 256: 32},
}

_PRESETS: Final[MappingProxyType[str, dict[str, Any]]] = MappingProxyType(
    {
        # Seconds on two cores: shows that everything turns, and no more than that.
        "demo": {
            "network": {"form": "residual9", "latent_resolution": 8, "latent_channels": 4},
            "growth": {
                "initial_resolution": 16,
                "final_resolution": 32,
                "fade_in_iterations": 60,
                "stabilize_iterations": {16: 100, 32: 140},
                "batch_sizes": 32,
            },
            "loss": {
                "layers": {16: {"relu1_2": 1}, 32: {"relu2_1": 1}},
                "vgg_weights": "random",
                "vgg_width": 16,
            },
            "log_every": 20,
            "validate_every": 100,
            "checkpoint_every": 100,
            "validation_images": 300,
            "cpu_threads": 1,
        },
        # Minutes on two cores, as far as relu3_1, which every VGG19 file reaches.
        "quick": {
            "growth": {
                "initial_resolution": 16,
                "final_resolution": 64,
                "fade_in_iterations": 150,
                "stabilize_iterations": {16: 400, 32: 400, 64: 400},
                "batch_sizes": {16: 64, 32: 64, 64: 32},
            },
            "loss": {
                "layers": {16: {"relu2_1": 1}, 32: {"relu3_1": 1}, 64: {"relu3_1": 1}},
                "vgg_weights": "download",
            },
            "images": {"flips_at_random": True},
            "log_every": 20,
            "validate_every": 200,
            "checkpoint_every": 100,
            "validation_images": 500,
        },
        # The same for radiographs: a latent of one place, as the public code's, since one that
        # keeps the place of things reconstructs a strange chest as well as a usual one.
        "quick-radiographs": {
            "network": {**_NIH_NETWORK, "channels": 16},
            "growth": {
                "initial_resolution": 8,
                "final_resolution": 32,
                "fade_in_iterations": 200,
                "stabilize_iterations": {8: 400, 16: 600, 32: 600},
                "batch_sizes": 32,
            },
            "loss": {
                "layers": {8: {"relu1_2": 1}, 16: {"relu2_2": 1}, 32: {"relu3_1": 1}},
                "vgg_weights": "download",
            },
            "log_every": 20,
            "validate_every": 200,
            "checkpoint_every": 200,
            "validation_images": 500,
        },
        "camelyon16-paper": {
            "growth": {"stabilize_iterations": {16: 20_000, 32: 20_000, 64: 8_666}},
            "loss": {"layers": {16: {"relu3_2": 1}, 32: {"relu3_2": 1}, 64: {"relu4_2": 1}}},
            "images": {"crop_px": 64, "crops_at_random": True, "flips_at_random": True},
        },
        "nih-subset-paper": {
            "network": _NIH_NETWORK,
            "growth": {
                **_NIH_GROWTH,
                "stabilize_iterations": {8: 20_000, 16: 20_000, 32: 20_000, 64: 3_500},
            },
            "loss": {"layers": {**_NIH_LAYERS, 64: {"relu4_2": 1}}},
        },
        "nih-pa-paper": {
            "network": _NIH_NETWORK,
            "growth": {
                **_NIH_GROWTH,
                "stabilize_iterations": {8: 20_000, 16: 20_000, 32: 20_000, 64: 10_000},
            },
            "loss": {"layers": {**_NIH_LAYERS, 64: {"relu3_2": 1}}},
        },
        "nih-ap-paper": {
            "network": {
                "latent_resolution": 1,
                "latent_channels": 64,
                "channels": (32, 32, 64, 64, 64),
            },
            "growth": {
                **_NIH_GROWTH,
                "stabilize_iterations": {8: 20_000, 16: 20_000, 32: 20_000, 64: 7_000},
                "batch_sizes": 56,
            },
            "loss": {"layers": {**_NIH_LAYERS, 64: {"relu3_2": 1}}},
            "optimiser": {"learning_rate": 5e-4},
        },
        "tiles-256": {
            "network": {"latent_resolution": 16, "latent_channels": 16, "channels": 16},
            "growth": {"initial_resolution": 32, **_LARGE_GROWTH},
            "loss": {"layers": {side: {layer_at(side): 1} for side in (32, 64, 128, 256)}},
            "images": {"flips_at_random": True},
        },
        "radiographs-256": {
            "network": {"latent_resolution": 1, "latent_channels": 64, "channels": 32},
            "growth": {"initial_resolution": 8, **_LARGE_GROWTH},
            "loss": {"layers": {side: {layer_at(side): 1} for side in (8, 16, 32, 64, 128, 256)}},
        },
    }
)
PRESETS: Final = tuple(_PRESETS)
Preset: TypeAlias = Literal[
    "demo",
    "quick",
    "quick-radiographs",
    "camelyon16-paper",
    "nih-subset-paper",
    "nih-pa-paper",
    "nih-ap-paper",
    "tiles-256",
    "radiographs-256",
]

_TERM: Final = r"([0-9]{1,9}(\.[0-9]{1,9})?\*)?relu[1-5]_[1-4]"
LayerSum: TypeAlias = Annotated[str, Field(pattern=rf"^{_TERM}(\+{_TERM})*$")]
_LISTS: Final[Mapping[str, Any]] = {
    "network.channels": tuple[PositiveInt, ...],
    "growth.fade_in_iterations": tuple[NonNegativeInt, ...],
    "growth.stabilize_iterations": tuple[NonNegativeInt, ...],
    "growth.batch_sizes": tuple[PositiveInt, ...],
    "loss.layers": tuple[LayerSum, ...],
}
"""What people type for settings that hold an entry for each resolution."""
_OPTIONS: Final = frozenset({"seed", "loss.vgg_weights"})  # parameters of the flows
_NO_SUM: Final = "not a layer such as relu3_1, nor a sum such as relu1_2+0.5*relu2_1"
_KIND: Final = re.compile(r"int|float|str|bool|(constrained|function)-.*|\w+\[.*\]")


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Show each field by its type alone: leaving it empty is what None stands for."""
        schema = handler(core)
        for shown in handler.resolve_ref_schema(schema)["properties"].values():
            if shown["anyOf"][0].get("type") != "boolean":  # an untouched switch would send "off"
                shown.update(shown.pop("anyOf")[0])
                shown.pop("default")
        return schema


def _make_form(settings: type[BaseModel], above: str = "") -> Any:
    """Derive a model of the same fields, all of them optional, from a model of settings."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        path = above + name
        kind: Any = field.annotation
        if path in _OPTIONS:
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            text, kind = kind.__doc__, _make_form(kind, f"{path}.")
        else:
            text = f"{field.description} Default: {_describe_default(path, field)}."
            kind = _LISTS.get(path) or (
                Annotated[kind, *field.metadata] if field.metadata else kind
            )
        fields[name] = (kind | None, Field(default=None, description=text and cleandoc(text)))
    name = settings.__name__.removesuffix("Settings")
    return create_model(name, __base__=_Form, __doc__=settings.__doc__, **fields)


def _describe_default(path: str, field: FieldInfo) -> str:
    group, _, name = path.rpartition(".")
    is_preset = any(name in (each.get(group, {}) if group else each) for each in _PRESETS.values())
    if field.is_required():
        return "the preset's"
    value = "none" if field.default is None else field.default
    return f"the preset's, or {value}" if is_preset else str(value)


if TYPE_CHECKING:
    TrainChanges = BaseModel
else:
    TrainChanges = _make_form(TrainSettings)


def load_preset(name: str, *changes: BaseModel | Mapping[str, Any] | None) -> TrainSettings:
    """Make settings from a preset.

    Args:
        name: One of `PRESETS`.
        *changes: Settings that differ from the preset, nested as `TrainSettings` is, or a
            `TrainChanges`; later ones win.

    Raises:
        SettingsError: If there is no such preset or setting, or they contradict each other.

    Examples:
        >>> load_preset("nih-subset-paper", {"growth": {"batch_sizes": 64}}).growth.batch_sizes
        64
        >>> load_preset("demo", TrainChanges(loss={"layers": ["relu1_1"]})).loss.layers
        {16: {'relu1_1': 1.0}, 32: {'relu1_1': 1.0}}
    """
    if name not in _PRESETS:
        raise SettingsError(name, "no such preset", f"Choose {', '.join(PRESETS)}")
    content = dict(_PRESETS[name])
    for each in changes:
        if not isinstance(each, BaseModel | Mapping | None):
            raise SettingsError("settings", f"{each!r} is no mapping", "Give names and values")
        given = each.model_dump(exclude_none=True) if isinstance(each, BaseModel) else each or {}
        for group, value in given.items():
            is_group = isinstance(value, Mapping) and isinstance(content.get(group, {}), Mapping)
            content[group] = {**content.get(group, {}), **value} if is_group else value
    try:
        return TrainSettings.model_validate(_read_lists(content))
    except ValidationError as error:
        raise explain(error) from error
    except ValueError as error:  # resolutions that do not double
        raise SettingsError("growth", str(error), "Change one of the two") from error


def _read_lists(content: dict[str, Any]) -> dict[str, Any]:
    """Turn the lists of a form into what settings hold: an entry for each resolution."""
    read = {group: dict(value) for group, value in content.items() if isinstance(value, Mapping)}
    growth = read.get("growth", {}).items()
    span = {name: value for name, value in growth if name.endswith("_resolution")}
    try:
        resolutions = GrowthSettings.model_validate(span).resolutions()
    except ValidationError as error:
        raise explain(error, within="growth") from error
    for path in _LISTS:
        group, _, name = path.partition(".")
        values = read.get(group, {}).get(name)
        if not isinstance(values, list | tuple):
            continue
        if name == "channels":  # are not by resolution: the network counts from the finest
            read[group][name] = values[0] if len(values) == 1 else values
            continue
        keys = resolutions[1:] if name.startswith("fade_in") else resolutions
        entries = [_read_sum(text) for text in values] if name == "layers" else list(values)
        entries *= len(keys) if len(entries) == 1 else 1
        if len(entries) != len(keys):
            problem = f"{len(entries)} entries for {len(keys)} resolutions, {keys} px"
            raise SettingsError(path, problem, "Give one for all of them, or one for each")
        read[group][name] = dict(zip(keys, entries, strict=True))
    return {**content, **read}


def _read_sum(text: str) -> dict[str, float]:
    """Read layers and weights from a sum such as `relu1_2+0.5*relu2_1`."""
    if not isinstance(text, str) or not re.fullmatch(rf"{_TERM}(\+{_TERM})*", text):
        raise SettingsError("loss.layers", f"{text!r} is {_NO_SUM}", "Give layers by their names")
    terms = [term.rpartition("*") for term in text.split("+")]
    read = {layer: float(weight or 1) for weight, _, layer in terms}
    if len(read) < len(terms):
        raise SettingsError("loss.layers", f"{text!r} names a layer twice", "Add up its weights")
    if not all(read.values()):
        raise SettingsError("loss.layers", f"{text!r} has a weight of 0", "Leave that layer out")
    return read


def write_sums(settings: TrainSettings) -> list[str]:
    """Write the compared layers as `--train.loss.layers` takes them, ascending by resolution."""
    return [
        "+".join(f"{weight:g}*{layer}" if weight != 1 else layer for layer, weight in each.items())
        for each in (settings.loss.layers[side] for side in settings.growth.resolutions())
    ]


def explain(error: ValidationError, within: str = "") -> SettingsError:
    """Make one error of the first setting that is wrong, with all that it could be instead.

    Args:
        error: Refusal of a `TrainSettings` or a `TrainChanges`.
        within: Group of settings that was validated alone, e.g. `growth`.
    """
    above = (within,) if within else ()
    found = [(_name_setting((*above, *each["loc"])), each) for each in error.errors()]
    where, first = found[0]
    wanted = [_say(each) for place, each in found if place == where]
    if not where:
        return SettingsError("settings", wanted[0], "Change one of the two")
    given = f"{first['input']!r} is not allowed ({'; or: '.join(dict.fromkeys(wanted))})"
    option = where.replace("_", "-")
    if first["type"] == "extra_forbidden":
        return SettingsError(where, "no such setting", "`normscope train --help` lists all of them")
    return SettingsError(where, given, f"Give another value by `--train.{option}`")


def _say(wrong: ErrorDetails) -> str:
    if wrong["type"] == "string_pattern_mismatch":  # only layers have a pattern
        return _NO_SUM
    return wrong["msg"].removeprefix("Value error, ")


def _name_setting(place: tuple[int | str, ...]) -> str:
    """A setting's dotted path, without what pydantic adds to tell the kinds of a value apart."""
    named = [str(part) for part in place if isinstance(part, str)]
    path = ".".join(part for part in named if not _KIND.fullmatch(part))
    # An entry of a list is given with the whole list.
    return next((each for each in _LISTS if path.startswith(f"{each}.")), path)
