"""Rearranged code trains as it did: the losses of fifty steps, as they were recorded.

Bitwise where PyTorch and the processor are those of the recording. Elsewhere other kernels round
otherwise, and fifty steps of Adam blow that up to a per cent; so there, and here too, the same
steps are made in double precision and compared within 1e-5. Where the recording is meant to
change, `python -m tests.training.recordings.steps` makes it anew.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.training.recordings.steps import (
    describe_platform,
    read_recording,
    train_fifty_steps,
    train_fifty_steps_in_double,
)

WITHIN = 1e-5


def recorded(name: str) -> NDArray[np.float64]:
    return np.array([float.fromhex(loss) for loss in read_recording()[name]])


def test_fifty_steps_have_the_recorded_losses_bit_for_bit() -> None:
    here, there = describe_platform(), read_recording()["platform"]
    differing = sorted(name for name in there if here[name] != there[name])
    if differing:
        pytest.skip(
            f"recorded on another platform ({', '.join(differing)}): "
            f"compared in double precision within {WITHIN:g} only"
        )
    assert train_fifty_steps() == recorded("losses").tolist()


def test_fifty_steps_in_double_precision_have_the_recorded_losses() -> None:
    losses = np.array(train_fifty_steps_in_double())
    assert len(losses) == 50
    np.testing.assert_allclose(losses, recorded("losses_in_double"), rtol=WITHIN, atol=0)


def test_a_slightly_other_training_has_other_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of 1.001 times Adam's own shows beyond the tolerance, from the second step on."""
    step = torch.optim.Adam.step

    def step_further(optimiser: torch.optim.Adam) -> None:
        optimiser.param_groups[0]["lr"] = 1.001e-3
        step(optimiser)

    monkeypatch.setattr(torch.optim.Adam, "step", step_further)
    difference = np.abs(np.array(train_fifty_steps_in_double()) / recorded("losses_in_double") - 1)
    assert difference[0] < WITHIN < difference[1]
