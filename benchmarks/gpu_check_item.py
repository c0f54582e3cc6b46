"""One item of the GPU check, in the process of its own that `benchmarks.gpu_check` starts.

It imports PyTorch only with the item's function, so that a broken installation fails items and
not the check.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

Figure: TypeAlias = float | str
State: TypeAlias = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Setup:
    """Where and how thoroughly an item is checked.

    Args:
        device_type: `cuda` or `cpu`.
        is_quick: Whether sizes and repetitions are small.
    """

    device_type: str
    is_quick: bool

    @cached_property
    def device(self) -> torch.device:
        """Device that the item runs on."""
        return import_module("torch").device(self.device_type)  # type: ignore[no-any-return]

    @property
    def on_gpu(self) -> bool:
        """Whether the device is an NVIDIA GPU."""
        return self.device_type == "cuda"

    @property
    def is_small(self) -> bool:
        """Whether sizes are those that two processor cores compute within seconds."""
        return not self.on_gpu


@dataclass(frozen=True)
class Found:
    """What an item found.

    Args:
        says: One line for the table.
        figures: Figures by name, with units in the names.
        problems: Faults that were found, a line each; an item without any passes.
        state: State of the item; it follows from the problems unless the item is skipped.
    """

    says: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    problems: Sequence[str] = ()
    state: State = "passed"

    @classmethod
    def skip(cls, reason: str) -> Found:
        """An item that cannot be checked on this machine."""
        return cls(reason, state="skipped")

    def judge(self) -> Found:
        """Fail where there are problems."""
        if not self.problems:
            return self
        return Found(self.says, self.figures, self.problems, "failed")


def list_excesses(figures: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """List the figures that are above their limit, or are no numbers.

    Args:
        figures: Measured figures by name.
        limits: Largest figure allowed, by name; names without a limit are not judged.
    """
    return [
        f"{name} is {figures[name]:.2g}, more than {limit:.2g}"
        for name, limit in limits.items()
        if name in figures and not figures[name] <= limit
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Check one item and write what it found as JSON.

    Args:
        arguments: Command-line arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check_item")
    parser.add_argument("function", help="MODULE:FUNCTION of the item")
    parser.add_argument("result", type=Path, help="file that is written")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    module, _, name = options.function.partition(":")
    check: Callable[[Setup], Found] = getattr(import_module(module), name)
    found = check(Setup(options.device, options.quick)).judge()
    options.result.write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
