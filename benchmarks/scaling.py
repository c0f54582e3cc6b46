"""Weak scaling: 1, 2 and 4 workers, each with its own batch, and what communication takes of it.

Workers are processes of one thread that average their gradients by gloo, as Ray starts them. Each
makes steps with and without the averaging, in turn: the difference is what communication costs
after all that overlaps with the backward pass. More workers than cores share the cores, so the
efficiency is that of the cores in use.

On paper, to 64 GPUs: a step of `t` seconds is followed, at worst without any overlap, by a ring
all-reduce of the gradients, `2 (n - 1)` exchanges of an n-th of them each:

    efficiency(n) = t / (t + 2 (n - 1) (latency + bytes / (n bandwidth)))

with the bytes that the network really has and these assumptions: 128 images of 64 px a GPU at 0.3
of an H200's 989 TFLOP/s in bfloat16, 50 GB/s a GPU between machines (400 Gb/s), 10 us an exchange.
The same formula with the latency and bandwidth measured here is shown beside the measured cost.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness import Comparison, Outcome, run_benchmark
from benchmarks.training import Case, count_flops, make_step
from training.learning.loop import train_step
from training.learning.speed import TargetCache
from training.learning.state import Workers, begin_training, make_recipe

WORKERS: Final = (1, 2, 4)
CPU: Final = torch.device("cpu")
LOCAL_BATCH: Final = 16
_LARGE: Final = 4 * 2**20  # floats, 16 MiB: what bandwidth is measured by

GPUS: Final = 64
GPU_FLOPS: Final = 0.3 * 989e12
GPU_BATCH: Final = 128
LINK_BYTES_S: Final = 50e9
LINK_LATENCY_S: Final = 10e-6


@dataclass
class Timing:
    """Seconds that the first worker measured.

    Args:
        together: Seconds of each step that averages its gradients.
        apart: Seconds of each step without averaging.
        small: Seconds of each all-reduce of one number.
        large: Seconds of each all-reduce of 16 MiB.
        gradient_bytes: Size of the gradients that a step averages.
    """

    together: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    gradient_bytes: int = 0

    @property
    def communication_share(self) -> float:
        """Of a step's time."""
        return max(0.0, 1 - median(self.apart) / median(self.together))


def predict_exchange(workers: int, size_bytes: float, *, bytes_s: float, latency_s: float) -> float:
    """Seconds of a ring all-reduce."""
    return 2 * (workers - 1) * (latency_s + size_bytes / (workers * bytes_s))


def predict_efficiency(workers: int, step_s: float, size_bytes: float) -> float:
    """Share of the ideal rate on GPUs, nothing overlapping; assumptions as above."""
    exchange_s = predict_exchange(
        workers, size_bytes, bytes_s=LINK_BYTES_S, latency_s=LINK_LATENCY_S
    )
    return step_s / (step_s + exchange_s)


def work(rank: int, workers: int, folder: str, rounds: int, resolution: int) -> None:
    """One worker; the first keeps its timing in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers
    )
    step, network, gradient_bytes = prepare(rank, workers, resolution)
    timing = Timing(gradient_bytes=gradient_bytes)
    small, large = torch.zeros(1), torch.zeros(_LARGE)
    for turn in range(-1, rounds):
        together = time_together(step)
        with network.no_sync():
            apart = time_together(step)
        if turn >= 0:
            timing.together.append(together)
            timing.apart.append(apart)
            timing.small.append(time_together(partial(dist.all_reduce, small)))
            timing.large.append(time_together(partial(dist.all_reduce, large)))
    if rank == 0:
        (Path(folder) / "timing.json").write_text(json.dumps(vars(timing)))
    dist.barrier()
    dist.destroy_process_group()


def prepare(
    rank: int, workers: int, resolution: int
) -> tuple[Callable[[], object], DistributedDataParallel, int]:
    """A worker's step, what averages its gradients, and their bytes."""
    case = Case(resolution, LOCAL_BATCH * workers, CPU)
    settings, images = case.settings({}), case.draw_images()[rank::workers]
    group = Workers(rank, workers, wrap=DistributedDataParallel)
    recipe = make_recipe(
        settings, case.make_features(), image_channels=1, device=CPU, workers=group
    )
    state, targets = begin_training(recipe), TargetCache(settings, LOCAL_BATCH)
    network = state.network
    if not isinstance(network, DistributedDataParallel):
        raise TypeError("the workers did not wrap the network")
    step = partial(
        train_step, recipe, state, images, places=np.arange(LOCAL_BATCH), targets=targets
    )
    return step, network, count_gradient_bytes(state.autoencoder)


def count_gradient_bytes(network: nn.Module) -> int:
    """Bytes of what is trained."""
    return sum(value.nbytes for value in network.parameters() if value.requires_grad)


def time_together(call: Callable[[], object]) -> float:
    """Seconds from when all workers begin."""
    dist.barrier()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run_workers(workers: int, *, rounds: int, resolution: int) -> Timing:
    """Start workers, and read what the first has measured."""
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as folder:
        spawn(work, (workers, folder, rounds, resolution), nprocs=workers)  # type: ignore[no-untyped-call] # torch's own is untyped
        return Timing(**json.loads((Path(folder) / "timing.json").read_text()))


def predict_gpus() -> float:
    """Efficiency of 64 GPUs at 64 px, on paper."""
    case = Case(64, 2, CPU)
    step_s = count_flops(make_step(case, {})) / case.batch * GPU_BATCH / GPU_FLOPS
    recipe = make_recipe(case.settings({}), case.make_features(), image_channels=1, device=CPU)
    size_bytes = count_gradient_bytes(begin_training(recipe).autoencoder)
    return predict_efficiency(GPUS, step_s, size_bytes)


def measure(quick: bool) -> Outcome:
    """1, 2 and 4 workers, one after the other."""
    resolution, rounds = (16, 6) if quick else (32, 20)
    timings = {
        workers: run_workers(workers, rounds=rounds, resolution=resolution) for workers in WORKERS
    }
    return conclude(timings, resolution, predict_gpus(), cores=os.cpu_count() or 1)


def conclude(
    timings: Mapping[int, Timing], resolution: int, on_gpus: float, *, cores: int
) -> Outcome:
    """Rates, the share of communication, and the formula beside what was measured."""
    names = {workers: f"{workers} worker{'s' * (workers > 1)}" for workers in timings}
    rates = {
        names[workers]: [workers * LOCAL_BATCH / seconds for seconds in timing.together]
        for workers, timing in timings.items()
    }
    speed = Comparison(
        f"Weak scaling, {LOCAL_BATCH} images of {resolution} px a worker, gloo, {cores} cores",
        "images/s",
        rates,
        names[1],
    )
    two = timings[2]
    latency_s = median(two.small) / 2
    bytes_s = 4 * _LARGE / max(median(two.large) - median(two.small), 1e-9)
    metrics = {f"predicted_efficiency_{GPUS}_gpus": on_gpus}
    for workers, timing in timings.items():
        if workers > 1:
            used = min(workers, cores)
            metrics |= {
                f"efficiency_{workers}": speed.ratio(names[workers]) / used,
                f"communication_share_{workers}": timing.communication_share,
                f"exchange_s_{workers}": median(timing.together) - median(timing.apart),
                f"predicted_exchange_s_{workers}": predict_exchange(
                    workers, timing.gradient_bytes, bytes_s=bytes_s, latency_s=latency_s
                ),
            }
    notes = [
        f"{two.gradient_bytes / 1024:,.0f} KiB of gradients a step; between two processes here "
        f"{latency_s * 1e6:,.0f} us an exchange, {bytes_s / 1e9:.2f} GB/s"
    ]
    return Outcome([speed], metrics, notes)


if __name__ == "__main__":
    run_benchmark("scaling", measure)
