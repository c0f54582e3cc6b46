"""When a network grows: iteration -> resolution, phase and alpha.

Progressive growing as in Shvetsova et al. 2021 (arXiv 2006.13265), section 3.2: the initial
resolution stabilizes; every doubled resolution first fades in, then stabilizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["fade_in", "stabilize"]
PerResolution: TypeAlias = int | Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training at one resolution in one phase.

    Attributes:
        resolution: Side of the images, in px.
        phase: `fade_in` while the resolution is blended in, then `stabilize`.
        iterations: Optimiser steps, at least 1.
        batch_size: Images per step, over all workers.
    """

    resolution: int
    phase: Phase
    iterations: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class GrowthState:
    """What one iteration trains.

    Attributes:
        resolution: Side of the images, in px.
        phase: `fade_in` or `stabilize`.
        alpha: Share of the new resolution during a fade, 1/n at the first of n iterations and
            1 at the last; None while stabilizing, when nothing is blended.
        stage_index: Position among the stages; an optimiser starts afresh where it changes.
        stage_iteration: Iterations of this stage that came before, from 0.
        batch_size: Images per step, over all workers.
    """

    resolution: int
    phase: Phase
    alpha: float | None
    stage_index: int
    stage_iteration: int
    batch_size: int


def resolutions_between(initial_resolution: int, final_resolution: int) -> tuple[int, ...]:
    """List the resolutions from the initial to the final one, doubling.

    Raises:
        ValueError: If doubling the initial resolution never meets the final one.
    """
    resolutions = [initial_resolution]
    while 0 < resolutions[-1] < final_resolution:
        resolutions.append(2 * resolutions[-1])
    if initial_resolution < 1 or resolutions[-1] != final_resolution:
        raise ValueError(
            f"doubling {initial_resolution} px never meets {final_resolution} px: "
            "choose resolutions a power of two apart"
        )
    return tuple(resolutions)


def plan_stages(
    initial_resolution: int,
    final_resolution: int,
    *,
    fade_in_iterations: PerResolution,
    stabilize_iterations: PerResolution,
    batch_sizes: PerResolution,
) -> tuple[Stage, ...]:
    """Lay out the stages of a run; a stage of 0 iterations is left out.

    Args:
        initial_resolution: First resolution in px; it stabilizes without a fade.
        final_resolution: Last resolution in px, the initial one times a power of two.
        fade_in_iterations: One count for all resolutions, or one for each after the first.
        stabilize_iterations: One count for all resolutions, or one for each.
        batch_sizes: One size for all resolutions, or one for each.

    Raises:
        ValueError: If the resolutions do not double, a resolution has no entry, a count is
            negative, a batch is empty or no iteration is left.
    """
    stages = []
    for resolution in resolutions_between(initial_resolution, final_resolution):
        batch_size = _at(resolution, batch_sizes, "batch_sizes", minimum=1)
        if resolution > initial_resolution:
            iterations = _at(resolution, fade_in_iterations, "fade_in_iterations")
            stages.append(Stage(resolution, "fade_in", iterations, batch_size))
        iterations = _at(resolution, stabilize_iterations, "stabilize_iterations")
        stages.append(Stage(resolution, "stabilize", iterations, batch_size))
    planned = tuple(stage for stage in stages if stage.iterations)
    if not planned:
        raise ValueError("every stage has 0 iterations: give at least one stage some")
    return planned


def total_iterations(stages: Sequence[Stage]) -> int:
    """Count the optimiser steps of all stages."""
    return sum(stage.iterations for stage in stages)


def state_at(step: int, stages: Sequence[Stage]) -> GrowthState:
    """Find what the iteration trains that `step` others came before.

    Alpha moves before the optimiser does, as in the published code: iteration k of n, counted
    from 1, trains at k/n.

    Args:
        step: Iterations already made, from 0 to `total_iterations(stages) - 1`.
        stages: The run, from `plan_stages`.

    Raises:
        ValueError: If the step lies outside the run.
    """
    first = 0
    for index, stage in enumerate(stages):
        iteration = step - first
        if 0 <= iteration < stage.iterations:
            fades = stage.phase == "fade_in"
            alpha = (iteration + 1) / stage.iterations if fades else None
            return GrowthState(
                resolution=stage.resolution,
                phase=stage.phase,
                alpha=alpha,
                stage_index=index,
                stage_iteration=iteration,
                batch_size=stage.batch_size,
            )
        first += stage.iterations
    raise ValueError(f"step {step} lies outside a run of {first} iterations: give 0 to {first - 1}")


def last_state(stages: Sequence[Stage]) -> GrowthState:
    """Find what the last iteration of a run trains: the point that scoring uses."""
    return state_at(total_iterations(stages) - 1, stages)


def _at(resolution: int, values: PerResolution, name: str, minimum: int = 0) -> int:
    value = values if isinstance(values, int) else values.get(resolution)
    if value is None:
        raise ValueError(
            f"{name} says nothing of {resolution} px: give one value for all, or one for each"
        )
    if value < minimum:
        raise ValueError(f"{name} is {value} at {resolution} px: give at least {minimum}")
    return value
