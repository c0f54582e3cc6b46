"""The choice of TF32: what PyTorch's own getters say after it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from training.networks.precision import set_tf32


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    set_tf32(is_allowed=False)


@pytest.mark.parametrize("is_allowed", [True, False])
def test_tf32_is_chosen_and_every_getter_of_pytorch_still_answers(is_allowed: bool) -> None:
    set_tf32(is_allowed=not is_allowed)
    set_tf32(is_allowed=is_allowed)
    assert torch.backends.cuda.matmul.allow_tf32 == is_allowed
    assert torch.backends.cudnn.allow_tf32 == is_allowed
    assert torch.get_float32_matmul_precision() == ("high" if is_allowed else "highest")
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if is_allowed else "ieee")
    convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined] # torch's stub lacks it
    assert convolutions == ("tf32" if is_allowed else "none")
    with torch.backends.cudnn.flags(enabled=True):
        pass
    assert torch.backends.cudnn.allow_tf32 == is_allowed


def test_the_getters_answer_in_a_process_that_has_asked_for_nothing_before() -> None:
    code = """
import torch
from training.networks.precision import set_tf32

for is_allowed in (False, True, False):
    set_tf32(is_allowed=is_allowed)
    with torch.backends.cudnn.flags():
        pass
    print(
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    on, off = "True True high", "False False highest"
    assert said.stdout.splitlines() == [off, on, off]
