"""Checkpoints: the whole state of a training as one file; loading unpickles nothing.

A checkpoint is one safetensors file, `step-00000026.safetensors`, written in one piece: it exists
whole or not at all. It holds the autoencoder, the discriminator if there is one, the states of Adam
and of the random number generators, and as text the counts, the settings and all earlier reports.
The order of samples and the augmentation follow from the number of samples and need no state.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.io import storage
from training.learning.loop import Report
from training.learning.state import Recipe, TrainingState, continue_training
from training.networks.growth import Stage, state_at
from training.settings import TrainSettings

JUDGED_BY: Final = "validation_loss"
_NETWORK: Final = "network."
_OPTIMISER: Final = "optimiser."
_DISCRIMINATOR: Final = "discriminator."
_ADVERSARY: Final = "adversary_optimiser."
_RANDOM: Final = "random."
_LENGTH_BYTES: Final = 8  # a safetensors file begins with the length of its header

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        url: URL that it was read from.
        facts: Counts and settings, by name.
        reports: All reports up to its step, without images and scores.
        tensors: Weights, optimiser states and random states, by name.
    """

    url: str
    facts: Mapping[str, Any]
    reports: tuple[Report, ...]
    tensors: Mapping[str, Tensor]

    @property
    def step(self) -> int:
        """Number of steps made."""
        return int(self.facts["step"])

    @property
    def is_last(self) -> bool:
        """Whether no steps are left to make."""
        return self.step == int(self.facts["total_steps"])

    @property
    def networks(self) -> dict[str, Tensor]:
        """The autoencoder's weights."""
        return _below(_NETWORK, self.tensors)

    def restore(self, recipe: Recipe) -> TrainingState:
        """Rebuild the state to continue from.

        Args:
            recipe: Recipe with the same settings; the number of workers may differ.

        Raises:
            SettingsError: The checkpoint was made with other settings.
        """
        _require_same(recipe.settings, self.facts["settings"], self.url)
        state = continue_training(
            recipe,
            self.networks,
            _below(_DISCRIMINATOR, self.tensors),
            step=self.step,
            sample=self.facts["sample"],
        )
        if self.facts["stage_index"] == state.stage_index:
            _restore_optimiser(state.optimiser, _below(_OPTIMISER, self.tensors))
            if state.adversary is not None:
                _restore_optimiser(state.adversary.optimiser, _below(_ADVERSARY, self.tensors))
        random = _below(_RANDOM, self.tensors)
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and recipe.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], recipe.device)
        state.checkpoint = self.url
        return state


class Checkpoints:
    """The checkpoints of one run: the last few, and the best of the latest stage.

    Args:
        url: Folder or prefix that holds nothing else.
        kept: Number of latest checkpoints to keep.
    """

    def __init__(self, url: str, *, kept: int) -> None:
        self.url, self._kept = url, kept

    def url_at(self, step: int) -> str:
        """Return the URL of the checkpoint of a step."""
        return storage.join(self.url, f"step-{step:08d}.safetensors")

    def find_steps(self) -> list[int]:
        """List the steps that have a checkpoint, ascending."""
        matches = [re.fullmatch(r"step-(\d{8,})\.safetensors", name) for name in self._names()]
        return sorted(int(match[1]) for match in matches if match)

    def save(self, recipe: Recipe, state: TrainingState, reports: Sequence[Report]) -> str:
        """Write a state, then delete checkpoints that are not kept any longer.

        Returns:
            URL of the checkpoint.
        """
        url = self.url_at(state.step)
        storage.write_bytes(url, pack(recipe, state, reports))
        # Later ones are of a run that continued elsewhere, or cannot be read: leave them alone.
        steps = [step for step in self.find_steps() if step <= state.step]
        best = choose_best(steps, reports, recipe.stages)
        for step in steps[: -self._kept]:
            if step != best:
                storage.delete(self.url_at(step))
        for name in self._names():
            if name.startswith("."):  # left by an interrupted write
                storage.delete(storage.join(self.url, name))
        return url

    def read_latest(self) -> Checkpoint | None:
        """Read the latest checkpoint that is not damaged; None if there is none.

        Raises:
            StorageError: The storage does not answer.
        """
        for step in reversed(self.find_steps()):
            url = self.url_at(step)
            try:
                return unpack(url, storage.read_bytes(url))
            except SafetensorError as error:
                logger.warning("%s is damaged (%s): using the one before", url, error)
        return None

    def _names(self) -> list[str]:
        return [storage.name_of(found.url) for found in storage.list_objects(self.url)]


def choose_best(
    steps: Collection[int], reports: Sequence[Report], stages: Sequence[Stage]
) -> int | None:
    """Choose the step of lowest validation loss in the latest stage that was validated.

    Losses of different stages cannot be compared, as each stage compares other features.
    """
    judged = {
        report.step: (state_at(report.step - 1, stages).stage_index, -report.metrics[JUDGED_BY])
        for report in reports
        if report.step in steps and math.isfinite(report.metrics.get(JUDGED_BY, math.nan))
    }
    return max(judged, key=judged.__getitem__, default=None)


def pack(recipe: Recipe, state: TrainingState, reports: Sequence[Report]) -> bytes:
    """Write a state as the bytes of a safetensors file."""
    tensors = _above(_NETWORK, state.autoencoder.state_dict())
    tensors |= _above(_OPTIMISER, _moments(state.optimiser))
    if state.adversary is not None:
        tensors |= _above(_DISCRIMINATOR, state.adversary.discriminator.state_dict())
        tensors |= _above(_ADVERSARY, _moments(state.adversary.optimiser))
    tensors[_RANDOM + "cpu"] = torch.get_rng_state()
    if recipe.device.type == "cuda":
        tensors[_RANDOM + "cuda"] = torch.cuda.get_rng_state(recipe.device)
    facts = {
        "step": state.step,
        "sample": state.sample,
        "stage_index": state.stage_index,
        "settings": recipe.settings.model_dump(mode="json"),
        "total_steps": recipe.total_steps,
    }
    earlier = [[report.step, dict(report.metrics)] for report in reports]
    text = {"facts": json.dumps(facts), "reports": json.dumps(earlier)}
    return safetensors.torch.save(
        {name: value.contiguous() for name, value in tensors.items()}, text
    )


def unpack(url: str, data: bytes) -> Checkpoint:
    """Read the bytes of a safetensors file.

    Raises:
        SafetensorError: They are damaged.
    """
    tensors = safetensors.torch.load(data)
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    text = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])["__metadata__"]
    facts = json.loads(text["facts"])
    reports = tuple(
        Report(step, facts["total_steps"], metrics) for step, metrics in json.loads(text["reports"])
    )
    return Checkpoint(url, facts, reports, tensors)


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": value
        for number, moments in optimiser.state_dict()["state"].items()
        for name, value in moments.items()
    }


def _restore_optimiser(optimiser: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    content = optimiser.state_dict()
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    for number, parameter in enumerate(parameters):
        own = _below(f"{number}.", moments)
        if own:
            content["state"][number] = {
                name: _copy_like(parameter, value) for name, value in own.items()
            }
    optimiser.load_state_dict(content)


def _copy_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Copy a value to a parameter's device and strides, so that sums keep their order."""
    if value.shape != parameter.shape:
        return value  # Adam's count of steps
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _above(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _require_same(settings: TrainSettings, found: dict[str, Any], item: str) -> None:
    before = TrainSettings.model_validate(found)
    if before != settings:
        differing = sorted(
            name
            for name in type(settings).model_fields
            if getattr(before, name) != getattr(settings, name)
        )
        raise SettingsError(
            item,
            f"made with other settings ({', '.join(differing)})",
            "Use the same settings, or another run name",
        )
