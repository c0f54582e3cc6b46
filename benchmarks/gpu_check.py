"""What needs a GPU, checked and measured on this machine: `python -m benchmarks.gpu_check`.

Options: `--quick`, `--json FILE`, `--only ITEM ...`. Each item runs in a process of its own, so
that a crash of the driver or an exhausted card ends that item alone, and all of them end within
eight minutes. Items that a processor can run too do so where there is no NVIDIA GPU; the others
are skipped. The exit status is 1 if an item failed.

It needs no network, no server and neither Ray, MLflow, Prefect nor Dask; `gpu_check_packages.txt`
beside this file lists the packages that it does need beside PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu_check_item import Found
from benchmarks.harness import describe_hardware

LIMIT_S: Final = 480.0
NO_GPU: Final = "no NVIDIA GPU"
ENVIRONMENT: Final = "environment"
_ROOT: Final = Path(__file__).parents[1]
_TAIL_CHARACTERS: Final = 2000
_COLOURS: Final = {"passed": "green", "failed": "red", "skipped": "yellow"}


@dataclass(frozen=True)
class Item:
    """An item of the check.

    Args:
        name: Name of the item, as `--only` takes it.
        function: `MODULE:FUNCTION` that checks it, below `benchmarks` unless it has a dot.
        needs_gpu: Whether a processor cannot run it.
        limit_s: Seconds after which its process is stopped.
    """

    name: str
    function: str
    needs_gpu: bool = False
    limit_s: float = 90.0


ITEMS: Final = (
    Item(ENVIRONMENT, "gpu_check_environment:describe_environment"),
    Item("tf32-switch", "gpu_check_numerics:check_tf32_switch"),
    Item("features", "gpu_check_numerics:check_features"),
    Item("steps", "gpu_check_numerics:check_steps"),
    Item("scoring", "gpu_check_numerics:check_scoring"),
    Item("fused-optimiser", "gpu_check_training:check_fused_optimiser", needs_gpu=True),
    Item("images-on-device", "gpu_check_training:check_images_on_device"),
    Item("target-cache", "gpu_check_training:check_target_cache"),
    Item("out-of-memory", "gpu_check_training:check_out_of_memory", needs_gpu=True),
    Item("training-loop", "gpu_check_training:check_training_loop"),
    Item("nccl", "gpu_check_training:check_process_group"),
    Item("card", "gpu_check_speed:measure_card"),
    Item("feature-speed", "gpu_check_speed:measure_features", limit_s=120),
    Item("training-speed", "gpu_check_speed:measure_training", limit_s=180),
    Item("scoring-speed", "gpu_check_speed:measure_scoring"),
    Item("missing-compiler", "gpu_check_compiled:check_missing_compiler", needs_gpu=True),
    Item("compiled-steps", "gpu_check_compiled:check_compiled_steps", needs_gpu=True, limit_s=180),
)


@dataclass(frozen=True)
class Result:
    """The outcome of an item.

    Args:
        name: Name of the item.
        found: Figures and problems that the item found.
        seconds: Wall time of its process in seconds.
        log: End of what its process wrote to standard error; empty unless the item failed.
    """

    name: str
    found: Found
    seconds: float
    log: str = ""


def check_items(items: Sequence[Item], *, is_quick: bool, limit_s: float) -> Iterator[Result]:
    """Check items one after the other, each in a process of its own.

    Args:
        items: Items to check; the first one tells of the machine, and whether it has a GPU.
        is_quick: Whether sizes and repetitions are small.
        limit_s: Seconds after which no further item is begun, and the one in hand is stopped.
    """
    ends, device = time.monotonic() + limit_s, "cpu"
    for item in items:
        left_s = ends - time.monotonic()
        if item.needs_gpu and device == "cpu":
            yield Result(item.name, Found.skip(NO_GPU), 0.0)
            continue
        if left_s <= 0:
            says = f"not begun within {limit_s:g} s"
            yield Result(item.name, Found(says, problems=[says]).judge(), 0.0)
            continue
        result = run_item(item, device, is_quick=is_quick, limit_s=min(item.limit_s, left_s))
        if item.name == ENVIRONMENT:
            device = str(result.found.figures.get("device", "cpu"))
        yield result


def run_item(item: Item, device: str, *, is_quick: bool, limit_s: float) -> Result:
    """Check one item in a process of its own.

    Args:
        item: Item to check.
        device: `cuda` or `cpu`.
        is_quick: Whether sizes and repetitions are small.
        limit_s: Seconds after which the process and its children are stopped.
    """
    function = item.function if "." in item.function else f"benchmarks.{item.function}"
    with tempfile.TemporaryDirectory(prefix="normscope-gpu-check-") as name:
        folder = Path(name)
        result, log = folder / "found.json", folder / "stderr"
        command = [sys.executable, "-m", "benchmarks.gpu_check_item", function, str(result)]
        command += ["--device", device, *(["--quick"] if is_quick else [])]
        began = time.monotonic()
        with log.open("wb") as stderr:
            status = _run(command, _make_environment(folder, device), stderr, limit_s)
        seconds = time.monotonic() - began
        tail = log.read_text(errors="replace")[-_TAIL_CHARACTERS:]
        if status == 0:
            found = Found(**json.loads(result.read_text()))
        else:
            reason = _explain(status, tail, limit_s)
            found = Found(reason, problems=[reason]).judge()
    return Result(item.name, found, seconds, tail if found.state == "failed" else "")


def _make_environment(folder: Path, device: str) -> dict[str, str]:
    """Make the environment of an item.

    What is compiled is compiled there, not found from before; and on a processor networks as small
    as these are fastest with one thread.
    """
    caches = {name: str(folder / name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    return {**os.environ, **caches, **threads}


def _run(
    command: Sequence[str], environment: Mapping[str, str], stderr: Any, limit_s: float
) -> int | None:
    """Run a command and return its exit status; None if it took too long and was killed."""
    process = subprocess.Popen(  # noqa: S603  # this project's own module
        command, cwd=_ROOT, env=environment, stdout=stderr, stderr=stderr, start_new_session=True
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # Compilers of its own may have outlived it, and Control-C reaches this process alone.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _explain(status: int | None, log: str, limit_s: float) -> str:
    """Why a process found nothing, in one line."""
    if status is None:
        return f"stopped after {limit_s:.0f} s"
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with status {status}"


def make_record(results: Sequence[Result], *, is_quick: bool) -> dict[str, Any]:
    """Make what the JSON file holds.

    Args:
        results: Results of all items.
        is_quick: Whether sizes and repetitions were small.
    """
    environment = {
        name: figure
        for result in results
        if result.name == ENVIRONMENT
        for name, figure in result.found.figures.items()
    }
    return {
        "benchmark": "gpu_check",
        "hardware": describe_hardware(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": is_quick,
        "environment": environment,
        "metrics": dict(_flatten(results)),
        "items": [asdict(result) for result in results],
    }


def _flatten(results: Sequence[Result]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of all items, named `ITEM.FIGURE`."""
    for result in results:
        for name, figure in result.found.figures.items():
            if not isinstance(figure, str):
                yield f"{result.name}.{name}", figure


def show(results: Sequence[Result], console: Console) -> None:
    """Print a table of items, and the problems of those that failed below it."""
    table = Table(title="GPU check", caption=describe_hardware())
    for header, how in (("item", "left"), ("", "left"), ("s", "right"), ("found", "left")):
        table.add_column(header, justify=how)  # type: ignore[arg-type]  # rich's names of sides
    for result in results:
        state = result.found.state
        coloured = f"[{_COLOURS[state]}]{state}"
        says = f"skipped: {result.found.says}" if state == "skipped" else result.found.says
        table.add_row(result.name, coloured, f"{result.seconds:.1f}", escape(says))
    console.print(table)
    for result in results:
        for problem in result.found.problems:
            console.print(f"{result.name}: {problem}", style="red", markup=False, highlight=False)


def main(
    arguments: Sequence[str] | None = None, items: Sequence[Item] = ITEMS, limit_s: float = LIMIT_S
) -> int:
    """Check, print the table, write the JSON file, and return the exit status.

    Args:
        arguments: Command-line arguments; None takes those of the process.
        items: Items to choose from, the one that tells of the machine first.
        limit_s: Seconds that all items may take together.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("--quick", action="store_true", help="small sizes, about three minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    names = [item.name for item in items[1:]]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ITEM", help=", ".join(names))
    options = parser.parse_args(arguments)
    chosen = [items[0], *(each for each in items[1:] if each.name in (options.only or names))]
    console, results = Console(), list[Result]()
    for result in check_items(chosen, is_quick=options.quick, limit_s=limit_s):
        console.print(f"{result.name}: {result.found.state}", highlight=False)
        results.append(result)
    show(results, console)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = make_record(results, is_quick=options.quick)
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(result.found.state == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
