"""Settings by name.

The presets named `...-paper` hold the hyperparameters of the public code of Shvetsova et al. 2021
(`ninatu/anomaly_detection` at ada9201, `configs/dpa/*/final/pg`): Adam's, batch sizes,
iterations, layers and channels. Its seeds are not taken over, as other code draws other numbers;
its crop and resize of radiographs belong to the ingest. Its features are normalised by a
file of statistics of torchvision's weights, which `loss.feature_statistics` takes by path; the
presets measure them on the training images.

`tiles-256` and `radiographs-256` go on where these end, and are not tuned: the layers by
`training.networks.vgg.layer_at`, latents of 1/48 (as for tiles of 64 px) and 1/1024 of an image's
values, smaller batches at the larger resolutions. With `growth__final_resolution=128` they end at
128 px.
"""

from __future__ import annotations

import json
import re
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from pydantic import ValidationError

from pipeline.errors import SettingsError
from training.networks.vgg import layer_at
from training.settings import TrainSettings

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
_KIND: Final = re.compile(r"int|float|str|bool|(constrained|function)-.*|\w+\[.*\]")
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


def load_preset(name: str, **changes: Any) -> TrainSettings:
    """Make settings from a preset.

    Args:
        name: One of `PRESETS`.
        changes: Settings to change; a dotted path with `__` for the dot, such as
            `loss__vgg_weights="vgg19.pth"`. A text that begins with `{` or `[`, and `null`, is
            JSON, for command lines: `loss__layers='{"16": {"relu1_2": 1}}'`.

    Raises:
        SettingsError: If there is no such preset or setting, or they contradict each other.

    Example:
        >>> load_preset("nih-subset-paper", seed=3, growth__batch_sizes=64).growth.batch_sizes
        64
    """
    if name not in _PRESETS:
        raise SettingsError(name, "no such preset", f"Choose {', '.join(PRESETS)}")
    content = dict(_PRESETS[name])
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = content
        for parent in parents:
            inner[parent] = dict(inner.get(parent, {}))
            inner = inner[parent]
        is_json = isinstance(value, str) and (value[:1] in {"{", "["} or value == "null")
        inner[last] = _parse(path, value) if is_json else value
    try:
        return TrainSettings.model_validate(content)
    except ValidationError as error:
        raise _explain(error, name) from error


def _explain(error: ValidationError, preset: str) -> SettingsError:
    """One error for the first setting that is wrong, with all that it could be instead."""
    found = [(_name_setting(each["loc"]), each) for each in error.errors()]
    where, first = found[0]
    wanted = [each["msg"].removeprefix("Value error, ") for place, each in found if place == where]
    if not where:
        return SettingsError(f"preset {preset} as changed", wanted[0], "Change it otherwise")
    given = f"{first['input']!r} will not do ({'; or: '.join(dict.fromkeys(wanted))})"
    return SettingsError(where, given, f"Give it as `--changes.{where.replace('.', '__')} VALUE`")


def _name_setting(place: tuple[int | str, ...]) -> str:
    """A setting's dotted path, without what pydantic adds to tell the kinds of a value apart."""
    named = [str(part) for part in place]
    return ".".join(part for part in named if not _KIND.fullmatch(part))


def _parse(path: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(path, f"not JSON ({error}): {text}", "Correct the setting") from error
