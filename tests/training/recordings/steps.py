"""Record the losses of fifty steps: `python -m tests.training.recordings.steps`.

They hold a training still while its code is rearranged. Record anew only when a training is meant
to become another one.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch

from tests.support.toys import make_dataset, make_settings
from training.data.batches import TrainingImages
from training.learning.loop import Report, train, train_step
from training.learning.perceptual_features import prepare_features
from training.learning.state import begin_training, growth_at, make_recipe
from training.learning.validation import read_validation
from training.networks.inputs import to_tensor

STEPS: Final = Path(__file__).with_name("steps.json")
_SETTINGS: Final = make_settings(
    growth={
        "initial_resolution": 8,
        "final_resolution": 32,
        "fade_in_iterations": 10,
        "stabilize_iterations": 10,
        "batch_sizes": {8: 12, 16: 12, 32: 10},
    },
    images={"crop_px": 32, "crops_at_random": True, "flips_at_random": True},
    log_every=1,
)


def train_fifty_steps() -> list[float]:
    """The loss of each step of a training that grows from 8 over 16 to 32 px."""
    with _one_thread():
        dataset = make_dataset("memory://steps/toys")
        features = prepare_features(_SETTINGS, dataset)
        recipe = make_recipe(_SETTINGS, features, image_channels=1, device=torch.device("cpu"))
        reports: list[Report] = []
        train(
            recipe,
            begin_training(recipe),
            TrainingImages(dataset, _SETTINGS),
            read_validation(dataset, _SETTINGS.images),
            save=lambda _state, _metrics: "",
            publish=reports.append,
        )
    return [report.metrics["train_loss"] for report in reports]


def train_fifty_steps_in_double() -> list[float]:
    """The same with twice the digits: what kernels round differently stays too small to show."""
    with _one_thread():
        dataset = make_dataset("memory://steps/toys")
        features = prepare_features(_SETTINGS, dataset).double()
        recipe = make_recipe(_SETTINGS, features, image_channels=1, device=torch.device("cpu"))
        state, images = begin_training(recipe), TrainingImages(dataset, _SETTINGS)
        state.autoencoder.double()
        losses = []
        while state.step < recipe.total_steps:
            batch = images.read_batch(state.sample, growth_at(recipe, state.step).batch_size)
            terms = train_step(recipe, state, to_tensor(batch, resolution=32).double())
            losses.append(terms["train_loss"].item())
    return losses


def describe_platform() -> dict[str, str]:
    """What decides a sum's last bits: PyTorch's build, and the processor it chooses kernels by."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text().partition("\n\n")[0] if cpuinfo.exists() else ""
    facts = re.findall(r"^(?:vendor_id|cpu family|model|flags)\s*: .*$", first, re.MULTILINE)
    return {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "torch_build": _digest(torch.__config__.show()),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "processor": _digest("\n".join(facts) or platform.processor()),
    }


def read_recording() -> dict[str, Any]:
    """What `main` wrote."""
    content: dict[str, Any] = json.loads(STEPS.read_text())
    return content


def main() -> None:
    content = {
        "platform": describe_platform(),
        "losses": [loss.hex() for loss in train_fifty_steps()],
        "losses_in_double": [loss.hex() for loss in train_fifty_steps_in_double()],
    }
    STEPS.write_text(json.dumps(content, indent=1) + "\n")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several would add up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
