from __future__ import annotations

import pytest

from training.networks.growth import (
    Stage,
    plan_stages,
    resolutions_between,
    state_at,
    total_iterations,
)

STAGES = plan_stages(
    8,
    32,
    fade_in_iterations={16: 4, 32: 3},
    stabilize_iterations={8: 2, 16: 1, 32: 5},
    batch_sizes={8: 64, 16: 32, 32: 16},
)


def test_first_resolution_stabilizes_and_later_ones_fade_in_before() -> None:
    assert list(STAGES) == [
        Stage(8, "stabilize", 2, 64),
        Stage(16, "fade_in", 4, 32),
        Stage(16, "stabilize", 1, 32),
        Stage(32, "fade_in", 3, 16),
        Stage(32, "stabilize", 5, 16),
    ]
    assert total_iterations(STAGES) == 15


def test_alpha_moves_before_the_optimiser_and_ends_at_one() -> None:
    states = [state_at(step, STAGES) for step in range(15)]
    assert [state.alpha for state in states] == [
        *(None, None),
        *(0.25, 0.5, 0.75, 1.0),
        None,
        *(1 / 3, 2 / 3, 1.0),
        *([None] * 5),
    ]
    assert [state.stage_index for state in states] == [0] * 2 + [1] * 4 + [2] + [3] * 3 + [4] * 5
    assert [state.stage_iteration for state in states[:8]] == [0, 1, 0, 1, 2, 3, 0, 0]
    assert {(state.resolution, state.batch_size) for state in states} == {
        (8, 64),
        (16, 32),
        (32, 16),
    }
    assert all((state.phase == "fade_in") == (state.alpha is not None) for state in states)


def test_one_number_serves_every_resolution() -> None:
    stages = plan_stages(16, 32, fade_in_iterations=7, stabilize_iterations=9, batch_sizes=4)
    assert stages == (
        Stage(16, "stabilize", 9, 4),
        Stage(32, "fade_in", 7, 4),
        Stage(32, "stabilize", 9, 4),
    )


def test_stages_without_iterations_are_left_out() -> None:
    stages = plan_stages(
        16, 32, fade_in_iterations=0, stabilize_iterations={16: 0, 32: 3}, batch_sizes=4
    )
    assert stages == (Stage(32, "stabilize", 3, 4),)
    assert state_at(0, stages).resolution == 32


def test_a_run_without_growth_has_one_stage() -> None:
    stages = plan_stages(64, 64, fade_in_iterations={}, stabilize_iterations=2, batch_sizes=4)
    assert stages == (Stage(64, "stabilize", 2, 4),)


@pytest.mark.parametrize("step", [-1, 15])
def test_a_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step {step} .* 15 iterations: give 0 to 14"):
        state_at(step, STAGES)


@pytest.mark.parametrize(("initial", "final"), [(16, 48), (32, 16), (0, 16), (-4, -4)])
def test_resolutions_that_do_not_double_are_refused(initial: int, final: int) -> None:
    with pytest.raises(ValueError, match="power of two apart"):
        resolutions_between(initial, final)


def test_a_resolution_left_unsaid_is_named() -> None:
    with pytest.raises(ValueError, match="fade_in_iterations says nothing of 32 px"):
        plan_stages(16, 32, fade_in_iterations={16: 1}, stabilize_iterations=1, batch_sizes=1)


@pytest.mark.parametrize(
    ("iterations", "batch_size", "message"),
    [
        (-1, 1, "stabilize_iterations is -1"),
        (1, 0, "batch_sizes is 0"),
        (0, 1, "every stage has 0"),
    ],
)
def test_empty_batches_and_runs_are_refused(iterations: int, batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_stages(
            16,
            16,
            fade_in_iterations=1,
            stabilize_iterations=iterations,
            batch_sizes=batch_size,
        )
