"""The training loop: single steps, and their sequence with validations and checkpoints.

Starting workers, saving and showing figures are left to the functions that are passed in. No step
waits for the device; the loss is read every `log_every` steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import NormscopeError
from training.data.augmentation import draw_shares
from training.data.batches import Rows, Samples, TrainingImages
from training.learning.out_of_memory import suggesting_batch
from training.learning.speed import Losses, TargetCache
from training.learning.state import Recipe, TrainingState, enter_stage, growth_at
from training.learning.validation import (
    Gallery,
    ValidationImages,
    ValidationScores,
    make_gallery,
    score_images,
    summarise,
)
from training.networks.autoencoder import mix_input
from training.networks.growth import GrowthState
from training.networks.inputs import to_tensor
from training.networks.losses import add_up
from training.networks.reconstruction import reconstruct

# The public code's own limit, beyond which it calls a loss diverged.
LARGEST_LOSS: Final = 1e6
CRITIC: Final = "discriminator_loss"


class DivergenceError(NormscopeError):
    """The loss has become NaN, infinite or very large."""


@dataclass(frozen=True)
class Report:
    """Progress of a training at one step.

    Attributes:
        step: Number of steps made.
        total_steps: Number of steps of the whole run.
        metrics: Figures by name.
        gallery: Reconstructions, after a validation, on rank 0 alone.
        scores: Scores of all validation images, after a validation.
    """

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    gallery: Gallery | None = None
    scores: ValidationScores | None = None


Publish: TypeAlias = Callable[[Report], None]
Save: TypeAlias = Callable[[TrainingState, Mapping[str, float]], str]


def critic_step(
    recipe: Recipe, state: TrainingState, images: Tensor, *, samples: Samples
) -> Tensor:
    """Make one step of the discriminator on one worker's part of a batch.

    Args:
        recipe: Settings, loss and device of the training.
        state: State with an adversary, changed in place except for the autoencoder.
        images: float (n, C, final resolution, final resolution) in [-1, 1].
        samples: int64 (n,), numbers of the samples, counted over the whole training.

    Returns:
        The discriminator's loss, a scalar whose mean over the workers is that of the batch.
    """
    growth, target = _prepare_target(recipe, state, images)
    if state.adversary is None:
        raise RuntimeError("the settings ask for no discriminator")
    path = {"resolution": growth.resolution, "alpha": growth.alpha}
    with torch.no_grad(), recipe.mixed_precision():
        made = state.autoencoder(target, **path).to(target.dtype)
    shares = torch.from_numpy(draw_shares(samples, seed=recipe.settings.seed))
    loss: Tensor = state.adversary.critic(
        target, made, shares.to(target, non_blocking=True), **path
    )
    loss = loss * _weigh_part(recipe, growth, len(target))
    _update(state.adversary.optimiser, loss)
    state.sample += growth.batch_size
    return loss.detach()


def train_step(
    recipe: Recipe,
    state: TrainingState,
    images: Tensor,
    *,
    places: Rows | None = None,
    targets: TargetCache | None = None,
) -> Losses:
    """Make one step of the autoencoder on one worker's part of a batch.

    Args:
        recipe: Settings, loss and device of the training.
        state: State that is changed in place.
        images: float (n, C, final resolution, final resolution) in [-1, 1].
        places: int64 (n,), positions of the images among all training images.
        targets: Cache of the images' features.

    Returns:
        The terms of the loss, scalars on the device. Their means over the workers are the means
        over the batch, even if the parts differ in size.
    """
    growth, target = _prepare_target(recipe, state, images)
    known = None
    if targets is not None and places is not None:
        extract = partial(recipe.loss.extract_target, target, growth.resolution)
        known = targets.look_up(places, growth, extract)
    weight = _weigh_part(recipe, growth, len(images))
    losses = {
        name: loss * weight for name, loss in state.objective(target, growth.alpha, known).items()
    }
    _update(state.optimiser, add_up(losses))
    state.step += 1
    state.sample += growth.batch_size
    return {name: loss.detach() for name, loss in losses.items()}


def _prepare_target(
    recipe: Recipe, state: TrainingState, images: Tensor
) -> tuple[GrowthState, Tensor]:
    """Enter the step's stage if it is new, and prepare what the networks see."""
    growth = growth_at(recipe, state.step)
    if growth.stage_index != state.stage_index:
        enter_stage(recipe, state)
    target = mix_input(images, resolution=growth.resolution, alpha=growth.alpha)
    return growth, target.contiguous(memory_format=recipe.memory_format)


def _weigh_part(recipe: Recipe, growth: GrowthState, images: int) -> float:
    """Weight of a worker's part in the mean over the workers."""
    return images * recipe.workers.size / growth.batch_size


def _update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    optimiser.step()


def train(
    recipe: Recipe,
    state: TrainingState,
    images: TrainingImages,
    validation: ValidationImages,
    *,
    save: Save,
    publish: Publish,
) -> None:
    """Make all steps that are left.

    Args:
        recipe: Settings, loss and device of the training.
        state: State that is changed in place.
        images: Images that batches are drawn from.
        validation: Images that are scored at each validation.
        save: Stores the state and returns its URL; every worker calls it at the same steps.
        publish: Shows a report; every worker calls it at the same steps, rank 0 with a gallery.

    Raises:
        DivergenceError: The loss is not finite or beyond `LARGEST_LOSS`.
        SettingsError: A batch does not fit into memory.
    """
    meter = Meter()
    targets = TargetCache(recipe.settings, images.image_count)
    while state.step < recipe.total_steps:
        growth = growth_at(recipe, state.step)
        losses: dict[str, Tensor] = {}
        for _ in range(recipe.settings.adversarial.steps_before_each):
            batch = _draw(recipe, state, images)
            with suggesting_batch(recipe, state, batch.images):
                losses[CRITIC] = critic_step(recipe, state, batch.images, samples=batch.samples)
        batch = _draw(recipe, state, images)
        with suggesting_batch(recipe, state, batch.images):
            losses |= train_step(recipe, state, batch.images, places=batch.places, targets=targets)
        meter.add(losses, growth.batch_size)
        due = _Due.after(recipe, state.step, growth)
        if not due.reading:
            continue
        metrics = _read_metrics(recipe, state, growth, meter)
        if due.validation or due.checkpoint:
            # The loss that was read is that of the weights before; check these as well.
            _require_finite(
                recipe, state, growth, _measure_loss(recipe, state, batch.images, growth)
            )
        gallery, scores = None, None
        if due.validation:
            found = score_images(recipe, state.autoencoder, validation.images, growth=growth)
            scores = ValidationScores(found, validation.labels)
            metrics |= summarise(scores.scores, scores.labels)
            if recipe.workers.rank == 0:
                gallery = make_gallery(recipe, state.autoencoder, validation, growth=growth)
        publish(Report(state.step, recipe.total_steps, metrics, gallery, scores))
        if due.checkpoint:
            state.checkpoint = save(state, metrics)
        meter.begin()


class Meter:
    """Sums losses on the device; no step waits for a sum."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start sums afresh."""
        self._sums: dict[str, Tensor] = {}
        self._steps, self._images, self._began = 0, 0, time.perf_counter()

    def add(self, losses: Losses, images: int) -> None:
        """Add the losses of one step."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss
        self._steps += 1
        self._images += images

    def read(self) -> tuple[dict[str, float], float]:
        """Wait for the device and return the mean of each loss, and the images per second."""
        means = {name: total.item() / self._steps for name, total in self._sums.items()}
        return means, self._images / (time.perf_counter() - self._began)


@dataclass(frozen=True)
class _Batch:
    """One worker's part of a batch: the images on the device, and which they are."""

    images: Tensor
    places: Rows
    samples: Samples


def _draw(recipe: Recipe, state: TrainingState, images: TrainingImages) -> _Batch:
    """Draw this worker's part of the next batch."""
    at = (state.sample, growth_at(recipe, state.step).batch_size)
    share = {"rank": recipe.workers.rank, "world": recipe.workers.size}
    read = images.read_batch(*at, **share)
    final = recipe.settings.growth.final_resolution
    tensor = to_tensor(read, resolution=final, device=recipe.device)
    return _Batch(tensor, *images.members_at(*at, **share))


def _read_metrics(
    recipe: Recipe, state: TrainingState, growth: GrowthState, meter: Meter
) -> dict[str, float]:
    """Wait for the device, and read the means over the steps since the last reading."""
    means, images_per_s = meter.read()
    return {
        **{name: _require_finite(recipe, state, growth, mean) for name, mean in means.items()},
        "resolution": float(growth.resolution),
        "alpha": 1.0 if growth.alpha is None else growth.alpha,
        "images_per_s": images_per_s,
    }


def _measure_loss(
    recipe: Recipe, state: TrainingState, images: Tensor, growth: GrowthState
) -> float:
    """Compute the loss of the present weights on a worker's part of a batch."""
    with torch.inference_mode():
        made = reconstruct(state.autoencoder, images, growth, precision=recipe.mixed_precision())
        loss = made.compare(recipe.loss).reduce("mean")
        if state.adversary is not None:
            loss = loss + state.adversary.measure(
                made.images.to(made.target.dtype), resolution=growth.resolution, alpha=growth.alpha
            )
        return loss.item()


def _require_finite(
    recipe: Recipe, state: TrainingState, growth: GrowthState, loss: float
) -> float:
    """Average a loss over the workers.

    Raises:
        DivergenceError: The mean is not finite or very large; on every worker at once.
    """
    mean = float(np.mean(recipe.workers.gather(np.array([loss]))))
    if not math.isfinite(mean) or abs(mean) > LARGEST_LOSS:
        last = state.checkpoint
        where = f"The last good checkpoint is {last}" if last else "No checkpoint was made"
        raise DivergenceError(
            f"step {state.step}",
            f"the loss has become {mean:g} at {growth.resolution} px",
            f"{where}; train with a lower optimiser.learning_rate under another run name",
        )
    return mean


@dataclass(frozen=True)
class _Due:
    """What is due after a step."""

    reading: bool
    validation: bool
    checkpoint: bool

    @classmethod
    def after(cls, recipe: Recipe, step: int, growth: GrowthState) -> _Due:
        settings = recipe.settings
        ends_stage = growth.stage_iteration + 1 == recipe.stages[growth.stage_index].iterations
        validation = ends_stage or step % settings.validate_every == 0
        checkpoint = ends_stage or step % settings.checkpoint_every == 0
        reading = validation or checkpoint or step % settings.log_every == 0
        return cls(reading, validation, checkpoint)
