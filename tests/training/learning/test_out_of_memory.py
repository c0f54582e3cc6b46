"""A batch that memory does not hold: the error names one that it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from tests.support.toy_training import Bench, steady
from training.learning.out_of_memory import find_fitting_batch, ran_out_of_memory
from training.learning.state import begin_training

CORES = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


def holding(limit: int, tried: list[int], error: RuntimeError = CORES) -> Callable[[int], None]:
    def try_batch(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise error

    return try_batch


def test_a_batch_is_halved_until_it_fits() -> None:
    tried: list[int] = []
    assert find_fitting_batch(holding(13, tried), 96) == 12
    assert tried == [48, 24, 12]
    assert find_fitting_batch(holding(0, tried), 3) == 0
    with pytest.raises(RuntimeError, match="another fault"):
        find_fitting_batch(holding(1, tried, RuntimeError("another fault")), 8)


def test_a_lack_of_memory_is_known_on_both_devices() -> None:
    assert ran_out_of_memory(CORES)
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert ran_out_of_memory(RuntimeError(cublas))
    assert not ran_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_pytorch_says_on_cores_is_what_we_look_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)  # more than addresses reach
    assert ran_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("limit", "weight", "remedy"),
    [
        (4, 0, "Choose at most 3 at 16 px: tried, and it fits"),
        (4, 0.1, "Choose at most 3 at 16 px: tried, and it fits"),
        (0, 0, "Not even one image fits"),
    ],
)
def test_a_training_names_the_batch_that_fits(
    limit: int, weight: float, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve images do not fit, nor six; three do."""
    bench = Bench(**steady(16, 3), adversarial={"weight": weight})
    state = begin_training(bench.recipe)
    before = {name: value.clone() for name, value in state.autoencoder.state_dict().items()}
    convolve = nn.Conv2d.forward

    def run_out(self: nn.Conv2d, images: Tensor) -> Tensor:
        if len(images) > limit:
            raise CORES
        return convolve(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", run_out)
    with pytest.raises(SettingsError, match=remedy) as caught:
        bench.run(state)
    assert "12 images of 16 px do not fit in the memory of 1 x cpu" in str(caught.value)
    assert state.step == 0
    after = state.autoencoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_other_faults_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: nn.Conv2d, images: Tensor) -> Tensor:
        raise RuntimeError("another fault")

    bench = Bench(**steady(16, 3))
    monkeypatch.setattr(nn.Conv2d, "forward", fail)
    with pytest.raises(RuntimeError, match="another fault"):
        bench.run(begin_training(bench.recipe))
