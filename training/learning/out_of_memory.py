"""Advice when a step runs out of memory: the largest batch that fits, found by trying."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from pipeline.errors import SettingsError
from training.learning.adversary import Critic
from training.learning.state import Recipe, TrainingState, growth_at
from training.networks.autoencoder import mix_input
from training.networks.losses import add_up

# PyTorch has an error class for GPUs; its CPU allocator and NVIDIA's libraries use these words.
_SIGNS: Final = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def find_fitting_batch(try_batch: Callable[[int], None], batch_size: int) -> int:
    """Halve a batch that does not fit until it does.

    Args:
        try_batch: Does the work of a given number of images and drops the result.
        batch_size: Number of images that did not fit.

    Returns:
        The largest half, quarter, ... that fits; 0 if not even one image fits.
    """
    size = batch_size // 2
    while size:
        try:
            try_batch(size)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            size //= 2
        else:
            return size
    return 0


@contextmanager
def suggesting_batch(recipe: Recipe, state: TrainingState, images: Tensor) -> Iterator[None]:
    """Turn running out of memory into an error that names a batch size which fits.

    Args:
        recipe: Settings, loss and device of the training.
        state: State before the step; trying smaller batches does not change it.
        images: Images that the step trains on.

    Raises:
        SettingsError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        # The frames of the traceback keep the step's tensors alive.
        traceback.clear_frames(error.__traceback__)
        raise _explain(recipe, state, images) from error


def _explain(recipe: Recipe, state: TrainingState, images: Tensor) -> SettingsError:
    growth = growth_at(recipe, state.step)

    def try_batch(size: int) -> None:
        if recipe.device.type == "cuda":
            torch.cuda.empty_cache()
        target = mix_input(images[:size], resolution=growth.resolution, alpha=growth.alpha)
        # Without the data-parallel wrapper: the other workers do not take part.
        target = target.contiguous(memory_format=recipe.memory_format)
        objective = recipe.make_objective(state.autoencoder, growth.resolution, state.adversary)
        losses = objective(target, growth.alpha, None)
        used = [value for value in state.autoencoder.parameters() if value.requires_grad]
        torch.autograd.grad(add_up(losses), used)
        if state.adversary is not None:
            critic = Critic(state.adversary.discriminator, recipe.settings.adversarial)
            shares = torch.zeros(len(target)).to(target)
            path = {"resolution": growth.resolution, "alpha": growth.alpha}
            loss = critic(target, target, shares, **path)
            torch.autograd.grad(loss, [each for each in critic.parameters() if each.requires_grad])

    fitting = find_fitting_batch(try_batch, len(images)) * recipe.workers.size
    problem = (
        f"{growth.batch_size} images of {growth.resolution} px do not fit in the memory of "
        f"{recipe.workers.size} x {recipe.device}"
    )
    if fitting:
        remedy = f"Choose at most {fitting} at {growth.resolution} px: tried, and it fits"
    else:
        remedy = "Not even one image fits: choose a lower growth.final_resolution"
    return SettingsError("growth.batch_sizes", problem, remedy)
