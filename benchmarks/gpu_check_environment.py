"""What the GPU check runs on: card, driver, PyTorch, and the compilers of compiled steps."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

import torch
import torch.cuda.nccl

from benchmarks.gpu_check_item import Figure, Found, Setup

OLDEST_TORCH: Final = (2, 11)
_GIB: Final = 2**30


def describe_environment(_: Setup) -> Found:
    """Name the machine, and choose the device of all other items.

    A card that the driver lists and PyTorch cannot use is a problem, not a machine without one.
    """
    cards = ask_driver("name")
    is_usable = torch.cuda.is_available()
    figures: dict[str, Figure] = {
        "device": "cuda" if is_usable else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "none",
        "driver": ", ".join(sorted(set(ask_driver("driver_version")))) or "none",
        "triton": _find_version("triton"),
        "compiler": find_compiler() or "none",
    }
    if is_usable:
        figures |= describe_card()
    problems = []
    if parse_version(torch.__version__) < OLDEST_TORCH:
        problems.append(f"PyTorch is {torch.__version__}: 2.11 or later is needed")
    if cards and not is_usable:
        problems.append(
            f"the driver {figures['driver']} lists {cards[0]}, which PyTorch {torch.__version__} "
            f"(CUDA {figures['torch_cuda']}) cannot use"
        )
    card = figures.get("card", "no NVIDIA GPU")
    says = f"{card}, driver {figures['driver']}, PyTorch {torch.__version__}"
    return Found(f"{says}, Python {figures['python']}", figures, problems)


def describe_card() -> dict[str, Figure]:
    """Name the card and what PyTorch knows of it."""
    card = torch.cuda.get_device_properties(0)
    nccl: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "card": card.name,
        "cards": float(torch.cuda.device_count()),
        "memory_gib": card.total_memory / _GIB,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": float(card.multi_processor_count),
        "cudnn": str(cudnn),
        "nccl": ".".join(map(str, nccl)),
    }


def ask_driver(field: str) -> list[str]:
    """Ask NVIDIA's driver for a field of each card; nothing where there is no driver.

    Args:
        field: Field that `nvidia-smi --help-query-gpu` lists.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={field}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a fixed question
    return said.stdout.splitlines() if said.returncode == 0 else []


def find_compiler() -> str | None:
    """Find the C compiler that Triton builds its launchers with, as Triton looks for it."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def lacks_for_compiling() -> str | None:
    """Name what compiled steps lack on a GPU; None if it is all there."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if find_compiler() is None:
        return "no C compiler, which Triton needs: install gcc, or name one by CC"
    return None


def parse_version(text: str) -> tuple[int, int]:
    """Read major and minor of a version such as `2.11.0+cu130`."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
