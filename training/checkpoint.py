"""The whole state of a training <-> a folder of three files; loading unpickles nothing.

`networks.safetensors` holds the autoencoder, `optimiser.pt` Adam's state and the random number
generators' (tensors, read with `weights_only`), `state.json` the counts. The order of samples and
the augmentation follow from the count of samples and need no state of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from pipeline.errors import SettingsError
from training.config import TrainSettings
from training.state import Recipe, TrainingState, continue_training

NETWORKS: Final = "networks.safetensors"
OPTIMISER: Final = "optimiser.pt"
STATE: Final = "state.json"


def save_checkpoint(folder: Path, recipe: Recipe, state: TrainingState) -> None:
    """Write a state into a folder, which must be there."""
    weights = {name: value.contiguous() for name, value in state.autoencoder.state_dict().items()}
    safetensors.torch.save_file(weights, folder / NETWORKS)
    random = {"cpu": torch.get_rng_state()}
    if recipe.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(recipe.device)
    optimiser = {"optimiser": state.optimiser.state_dict(), "random": random}
    torch.save(optimiser, folder / OPTIMISER)
    content = {
        "step": state.step,
        "sample": state.sample,
        "stage_index": state.stage_index,
        "image_channels": recipe.image_channels,
        "settings": recipe.settings.model_dump(mode="json"),
    }
    (folder / STATE).write_text(json.dumps(content, indent=1))


def load_checkpoint(folder: Path, recipe: Recipe, *, name: str | None = None) -> TrainingState:
    """Continue from a folder.

    Args:
        folder: What `save_checkpoint` wrote.
        recipe: The same settings as then; the team may be another.
        name: Where the checkpoint is kept; the folder by default.

    Raises:
        SettingsError: The checkpoint was made with other settings.
    """
    content = json.loads((folder / STATE).read_text())
    _require_same(recipe.settings, content["settings"], str(name or folder))
    state = continue_training(
        recipe, read_networks(folder), step=content["step"], sample=content["sample"]
    )
    kept = torch.load(folder / OPTIMISER, map_location=recipe.device, weights_only=True)
    if content["stage_index"] == state.stage_index:
        state.optimiser.load_state_dict(kept["optimiser"])
    torch.set_rng_state(kept["random"]["cpu"].cpu())
    if "cuda" in kept["random"] and recipe.device.type == "cuda":
        torch.cuda.set_rng_state(kept["random"]["cuda"].cpu(), recipe.device)
    state.checkpoint = str(name or folder)
    return state


def read_networks(folder: Path) -> dict[str, Tensor]:
    """The autoencoder's weights in a checkpoint's folder."""
    return safetensors.torch.load_file(folder / NETWORKS)


def _require_same(settings: TrainSettings, found: dict[str, Any], item: str) -> None:
    before = TrainSettings.model_validate(found)
    if before != settings:
        differing = sorted(
            name for name in type(settings).model_fields
            if getattr(before, name) != getattr(settings, name)
        )  # fmt: skip
        raise SettingsError(
            item,
            f"made with other settings ({', '.join(differing)})",
            "Use the same settings, or another run name",
        )
