"""The form of every benchmark: `python -m benchmarks.NAME [--quick] [--json FILE]`.

Methods take turns, round after round, so that a machine that slows down slows all of them; what
counts is the median, and above all the ratio of two medians of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Method:
    """One way of doing the work.

    Args:
        name: Name of the method in the table.
        run: Does the work once. It may return the seconds that count, where it spends others on
            what is not measured; without them the whole call counts.
        units: Amount of work of one call, in the comparison's unit.
        prepare: Undoes the call before, unmeasured.
    """

    name: str
    run: Callable[[], float | None]
    units: float
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods that did the same work, and how fast each was in each round.

    Args:
        title: Work that the methods did.
        unit: Unit of the rates, e.g. `images/s`.
        rates: Method -> its rate in each round.
        reference: The method that the table's ratios refer to.
    """

    title: str
    unit: str
    rates: Mapping[str, Sequence[float]]
    reference: str

    def rate(self, method: str) -> float:
        """A method's median rate."""
        return median(self.rates[method])

    def ratio(self, method: str, reference: str | None = None) -> float:
        """How many times faster a method is than another, the table's reference by default."""
        return self.rate(method) / self.rate(reference or self.reference)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a benchmark found.

    Args:
        comparisons: Shown as tables.
        metrics: The figures to keep, by name.
        notes: Shown below the tables: what the figures rest on.
    """

    comparisons: Sequence[Comparison]
    metrics: Mapping[str, float]
    notes: Sequence[str] = field(default=())


def compare(
    title: str, methods: Sequence[Method], *, unit: str, rounds: int, warm_ups: int = 1
) -> Comparison:
    """Let methods take turns.

    Args:
        title: Work that the methods do.
        methods: The first is the reference of the table's ratios.
        unit: Unit of the rates, e.g. `images/s`.
        rounds: Number of measured runs of each method.
        warm_ups: Number of runs of each method before the measured ones.
    """
    rates: dict[str, list[float]] = {method.name: [] for method in methods}
    for turn in range(-warm_ups, rounds):
        # Whoever follows a heavy neighbour suffers: so nobody always follows the same one.
        shift = turn % len(methods)
        for method in [*methods[shift:], *methods[:shift]]:
            seconds = _measure(method)
            if turn >= 0:
                rates[method.name].append(method.units / seconds)
    return Comparison(title, unit, rates, methods[0].name)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Hold this thread, and those that it starts, on one core: some decoders start several."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def compare_by_clock_and_processor(
    title: str, methods: Sequence[Method], *, unit: str, rounds: int
) -> tuple[Comparison, Comparison]:
    """As `compare`; and the same calls by processor time, which other load changes less."""
    spent: dict[str, list[float]] = {method.name: [] for method in methods}

    def run_and_note(method: Method) -> float | None:
        began = _processor_seconds()
        seconds = method.run()
        spent[method.name].append(_processor_seconds() - began)
        return seconds

    noted = [replace(method, run=partial(run_and_note, method)) for method in methods]
    by_clock = compare(title, noted, unit=unit, rounds=rounds)
    rates = {
        method.name: [method.units / seconds for seconds in spent[method.name][-rounds:]]
        for method in methods
    }
    same = "The same by processor time, which others on the machine change less"
    return by_clock, Comparison(same, f"{unit} of a core", rates, by_clock.reference)


def _processor_seconds() -> float:
    """Spent so far by this process and by the workers of its loader; by no server beside them."""
    workers = [psutil.Process(child.pid).cpu_times() for child in active_children()]
    return time.process_time() + sum(times.user + times.system for times in workers)


def run_benchmark(
    name: str, measure: Callable[[bool], Outcome], arguments: Sequence[str] | None = None
) -> None:
    """The command line of a benchmark.

    Args:
        name: Name of the benchmark, as in `python -m benchmarks.NAME`.
        measure: Does it; its argument says whether it must end within five minutes on two cores.
        arguments: Command-line arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="end within 5 minutes on 2 cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the metrics there")
    options = parser.parse_args(arguments)
    outcome = measure(options.quick)
    hardware = describe_hardware()
    _show(outcome, hardware)
    if options.json is not None:
        record = {
            "benchmark": name,
            "hardware": hardware,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "metrics": dict(outcome.metrics),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def describe_hardware() -> str:
    """Processor, cores and graphics card, as the machine names them."""
    parts = [f"{_processor()}, {os.cpu_count()} cores"]
    program = shutil.which("nvidia-smi")
    if program is not None:
        cards = subprocess.run(  # noqa: S603  # a fixed question
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        parts += cards.stdout.splitlines()
    return "; ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _measure(method: Method) -> float:
    """Seconds of one call."""
    if method.prepare is not None:
        method.prepare()
    began = time.perf_counter()
    own = method.run()
    return own if own is not None else time.perf_counter() - began


def _show(outcome: Outcome, hardware: str) -> None:
    console = Console()
    for comparison in outcome.comparisons:
        table = Table(title=comparison.title, caption=hardware)
        table.add_column("method")
        table.add_column(f"median {comparison.unit}", justify="right")
        table.add_column("lowest", justify="right")
        table.add_column("highest", justify="right")
        table.add_column(f"of {comparison.reference}", justify="right")
        for method, rates in comparison.rates.items():
            figures = (comparison.rate(method), min(rates), max(rates))
            texts = [f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}" for figure in figures]
            table.add_row(method, *texts, f"{comparison.ratio(method):.2f}")
        console.print(table)
    for name, value in outcome.metrics.items():
        console.print(f"{name} = {value:.4g}", highlight=False)
    for note in outcome.notes:
        console.print(note, highlight=False)
