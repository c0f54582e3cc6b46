"""Settings of a training as a flow's parameter: a form in Prefect, options in `--help`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from cyclopts import Group, Parameter

from training.presets import Preset, TrainChanges, load_preset
from training.settings import TrainSettings

TrainForm: TypeAlias = Annotated[
    TrainChanges,
    Parameter(
        group=Group("Settings of the training", sort_key=1),
        consume_multiple=True,
        negative_iterable=(),
        json_dict=False,
    ),
]
"""Settings that differ from a preset; lists take several values after one option."""


def choose_settings(
    preset: Preset, changes: TrainChanges | None, *, seed: int, vgg_weights: str | None
) -> TrainSettings:
    """Make the settings of a training from the parameters of a flow.

    Args:
        preset: Name of the settings that fill what is not given.
        changes: Settings that differ from the preset.
        seed: Seed of the training.
        vgg_weights: Source of VGG19's weights; None leaves it to the preset.

    Raises:
        SettingsError: If settings contradict each other.
    """
    weights = {"loss": {"vgg_weights": vgg_weights}} if vgg_weights else {}
    return load_preset(preset, {"seed": seed, **weights}, changes)
