"""Items of the GPU check: the training's optimiser, device memory, loop and process group."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Final

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_check_cases import (
    BATCH,
    differ,
    make_dataset,
    make_settings,
    prepare_training,
    read_losses,
)
from benchmarks.gpu_check_item import Found, Setup, list_excesses
from benchmarks.training import Case
from pipeline.errors import SettingsError
from training.data.batches import TrainingImages
from training.data.image_cache import fits_on_device
from training.learning.checkpoint import Checkpoints
from training.learning.loop import Report, train_step
from training.learning.out_of_memory import suggesting_batch
from training.learning.speed import Features, TargetCache
from training.learning.state import (
    Array,
    TrainingState,
    Workers,
    begin_training,
    build_autoencoder,
    make_optimiser,
    make_recipe,
)
from training.networks.growth import state_at

_GIB: Final = 2**30
_LEFT_BYTES: Final = 3 * _GIB
_TOO_MANY: Final = 8192  # images of 64 px, whose step needs tens of GiB
_STORED_AT: Final = 14  # step of the checkpoint: in the last stage, some steps after its beginning
# cuDNN's backward passes add in no fixed order, so that two runs differ in their last digits.
_SAME: Final = 1e-3


def check_fused_optimiser(setup: Setup) -> Found:
    """Compare Adam as one kernel with Adam of many, and one that was stored with one that ran on.

    All of them get the same gradients.
    """
    networks: list[nn.Module] = []
    optimisers: list[torch.optim.Adam] = []
    for is_fused in (False, True, True):
        settings = make_settings({"acceleration": {"fuses_optimiser": is_fused}})
        network = build_autoencoder(settings, image_channels=3).to(setup.device)
        networks.append(network)
        growth = state_at(0, settings.growth.plan())
        optimisers.append(make_optimiser(network, growth, settings))
    for seed in range(5):
        _step(optimisers[:2], seed)
    networks[2].load_state_dict(networks[1].state_dict())
    optimisers[2].load_state_dict(deepcopy(optimisers[1].state_dict()))  # else they share it
    _step(optimisers, 5)
    plain, fused, stored = (_flatten(network) for network in networks)
    figures = {"fused": differ(fused, plain), "stored": differ(stored, fused)}
    problems = list_excesses(figures, {"fused": 1e-5, "stored": 1e-6})
    if not optimisers[1].defaults["fused"]:
        problems.append("the optimiser is not fused")
    says = "weights of 6 steps: {fused:.1g} off from the unfused, {stored:.1g} when stored between"
    return Found(says.format(**figures), figures, problems)


def _step(optimisers: Sequence[torch.optim.Adam], seed: int) -> None:
    """Step with the same random gradients."""
    for optimiser in optimisers:
        generator = torch.Generator().manual_seed(seed)
        for parameter in optimiser.param_groups[0]["params"]:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(drawn)
        optimiser.step()


def _flatten(network: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def check_images_on_device(setup: Setup) -> Found:
    """Compare batches cut on the device with those that the host cuts, crops and flips drawn."""
    dataset = make_dataset()
    images = {"crop_px": 32, "crops_at_random": True, "flips_at_random": True}
    before = _allocated(setup)
    held, read = (
        TrainingImages(
            dataset,
            make_settings({"images": images, "acceleration": {"images_on_device": where}}),
            setup.device,
        )
        for where in ("always", "never")
    )
    grown = _allocated(setup) - before
    needed = held.image_count * int(np.prod(dataset.image_shape))
    problems = []
    for start in (0, BATCH, 5 * BATCH):
        on_device, on_host = (each.read_batch(start, BATCH) for each in (held, read))
        if not torch.equal(on_device.cpu(), on_host):
            problems.append(f"the batch at sample {start} differs from the host's")
        if on_device.device.type != setup.device_type:
            problems.append(f"a batch is on {on_device.device}")
        if on_host.is_pinned() != setup.on_gpu:
            problems.append("the host's batch is not in pinned memory")
    if setup.on_gpu and grown < needed:
        problems.append(f"device memory grew by {grown} bytes, the images have {needed}")
    if fits_on_device(dataset, held.image_count, setup.device, where="auto") != setup.on_gpu:
        problems.append("`auto` chooses otherwise")
    says = f"batches equal the host's; {needed} bytes of images, memory grew by {grown}"
    return Found(says, {"images_bytes": needed, "grown_bytes": grown}, problems)


def _allocated(setup: Setup) -> int:
    return torch.cuda.memory_allocated() if setup.on_gpu else 0


def check_target_cache(setup: Setup) -> Found:
    """Compare a training that keeps its targets' features on the device with one that does not."""
    losses = [
        read_losses(_train(setup, {"acceleration": {"target_cache_bytes": size_bytes}}))
        for size_bytes in (2**30, 0)
    ]
    figures = {"loss": float((losses[0] / losses[1] - 1).abs().max())}
    problems = list_excesses(figures, {"loss": _SAME})
    settings, places = make_settings(), np.arange(24)
    values = torch.randn(24, 8, 5, 3).to(setup.device, memory_format=torch.channels_last)
    cache, growth = TargetCache(settings, len(places)), state_at(0, settings.growth.plan())
    cache.look_up(places, growth, lambda: {"kept": values})
    found = cache.look_up(places[::-1].copy(), growth, _refuse)
    if found is None or not torch.equal(found["kept"], values.flip(0)):
        problems.append("kept features come back as others")
    elif found["kept"].device.type != setup.device_type:
        problems.append(f"kept features are on {found['kept'].device}")
    says = f"kept features come back as they were; losses {figures['loss']:.1g} off from without"
    return Found(says, figures, problems)


def _refuse() -> Features:
    raise RuntimeError("features that are kept are computed again")


def _train(
    setup: Setup, changes: Mapping[str, Any] | None = None, *, workers: Workers | None = None
) -> list[Report]:
    """Train to the end and return the reports."""
    _, reports = prepare_training(make_settings(changes or {}), setup.device, workers).run()
    return reports


def check_out_of_memory(setup: Setup) -> Found:
    """Run out of the card's memory in a step: the error names a batch, and that batch fits."""
    case = Case(64, _TOO_MANY, setup.device)
    recipe = make_recipe(
        case.settings({}), case.make_features(), image_channels=1, device=setup.device
    )
    state, images = begin_training(recipe), case.draw_images()
    taken = _take_memory(setup)
    try:
        with suggesting_batch(recipe, state, images):
            train_step(recipe, state, images)
    except SettingsError as error:
        said = str(error)
    else:
        return Found("", problems=[f"a step of {_TOO_MANY} images fits: nothing was shown"])
    advised = re.search(r"Choose at most (\d+) at 64 px: tried, and it fits", said)
    if advised is None or state.step:
        return Found(said, problems=[f"no batch is named, or a step was counted: {said}"])
    torch.cuda.empty_cache()
    losses = train_step(recipe, state, images[: int(advised[1])])  # raises if it does not fit
    figures = {"advised_images": float(advised[1]), "taken_gib": taken.nbytes / _GIB}
    problems = [] if all(loss.isfinite() for loss in losses.values()) else ["the loss is NaN"]
    left_gib = _LEFT_BYTES / _GIB
    says = f"{_TOO_MANY} images do not fit in {left_gib:g} GiB; {advised[1]} are advised, and fit"
    return Found(says, figures, problems)


def _take_memory(setup: Setup) -> Tensor:
    """Take the card's memory but for a little, as another process on it would."""
    free_bytes, _ = torch.cuda.mem_get_info()
    return torch.empty(max(free_bytes - _LEFT_BYTES, 0), dtype=torch.uint8, device=setup.device)


def check_training_loop(setup: Setup) -> Found:
    """Train through all stages, continue from a checkpoint, and compare with the processor."""
    checkpoints = Checkpoints("memory://gpu-check/checkpoints", kept=1)
    training = prepare_training(make_settings({"checkpoint_every": _STORED_AT}), setup.device)

    def save(state: TrainingState, _: Mapping[str, float]) -> str:
        is_due = state.step == _STORED_AT
        return checkpoints.save(training.recipe, state, []) if is_due else ""

    state, reports = training.run(save=save)
    losses = read_losses(reports)
    stored = checkpoints.read_latest()
    if stored is None or state.step != training.recipe.total_steps:
        return Found("", problems=[f"ended at step {state.step}, checkpoint {stored}"])
    continued = read_losses(training.run(stored.restore(training.recipe))[1])
    here = Setup("cpu", is_quick=setup.is_quick)
    expected = read_losses(_train(here, {"checkpoint_every": _STORED_AT}))
    figures = {
        "continued": float((continued / losses[_STORED_AT:] - 1).abs().max()),
        "from_processor": float((losses / expected - 1).abs().max()),
        "auroc": reports[-1].metrics["validation_auroc"],
    }
    problems = list_excesses(figures, {"continued": _SAME, "from_processor": 5e-2})
    if next(state.autoencoder.parameters()).device.type != setup.device_type:
        problems.append("the network is on another device")
    says = "{continued:.1g} off when continued, {from_processor:.1g} from the processor's losses"
    return Found(f"{len(losses)} steps: " + says.format(**figures), figures, problems)


def check_process_group(setup: Setup) -> Found:
    """Train data-parallel with a process group of one rank, by NCCL on a GPU, otherwise gloo."""
    alone = read_losses(_train(setup))
    with process_group(setup) as backend:
        sent = torch.arange(6, dtype=torch.float32, device=setup.device).reshape(2, 3)
        gathered = [torch.zeros_like(sent)]
        torch.distributed.all_gather(gathered, sent)
        together = read_losses(_train(setup, workers=Workers(0, 1, _wrap(setup), _gather)))
    figures = {"loss": float((together / alone - 1).abs().max())}
    problems = list_excesses(figures, {"loss": _SAME})
    if not torch.equal(gathered[0], sent):
        problems.append("all_gather returns other values than were sent")
    says = f"{backend}, one rank: gathers, and trains {figures['loss']:.1g} off from alone"
    return Found(says, figures, problems)


@contextmanager
def process_group(setup: Setup) -> Iterator[str]:
    """Open PyTorch's process group with one rank, at a free port; yields the backend."""
    backend = "nccl" if setup.on_gpu else "gloo"
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)  # type: ignore[attr-defined] # torch's stub lacks it
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield backend
    finally:
        torch.distributed.destroy_process_group()


def _wrap(setup: Setup) -> Any:
    """Make the function that wraps a network as Ray Train does for several workers."""
    device_ids = [0] if setup.on_gpu else None
    return lambda network: DistributedDataParallel(network, device_ids=device_ids)


def _gather(array: Array) -> list[Array]:
    """Gather as `training.cluster.train` does."""
    found: list[Any] = [None]
    torch.distributed.all_gather_object(found, array)
    return found
