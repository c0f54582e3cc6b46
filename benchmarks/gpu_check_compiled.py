"""Items of the GPU check: steps that Inductor compiles into CUDA graphs."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from benchmarks.gpu_check_cases import make_settings, prepare_training, read_losses
from benchmarks.gpu_check_environment import lacks_for_compiling
from benchmarks.gpu_check_item import Found, Setup, list_excesses
from benchmarks.training import Case, make_step
from pipeline.errors import SettingsError

_COMPILED: Final = {"acceleration": {"compiles_steps": True}}
_ONE_STAGE: Final = {"growth": {"initial_resolution": 32}}


def check_compiled_steps(setup: Setup) -> Found:
    """Compare a compiled training with an eager one, through stages and a fade-in."""
    lack = lacks_for_compiling()
    if setup.on_gpu and lack is not None:
        return Found.skip(lack)
    stages: tuple[dict[str, Any], ...] = (_ONE_STAGE,) if setup.is_quick else ()
    losses, seconds = [], []
    for changes in ({}, _COMPILED):
        training = prepare_training(make_settings(*stages, changes), setup.device)
        began = time.monotonic()
        losses.append(read_losses(training.run()[1]))
        seconds.append(time.monotonic() - began)
    figures = {
        "loss": float((losses[1] / losses[0] - 1).abs().max()),
        "stages": float(len(training.recipe.stages)),
        "eager_s": seconds[0],
        "compiled_s": seconds[1],
    }
    problems = list_excesses(figures, {"loss": 1e-2})
    says = "{stages:g} stages, losses {loss:.1g} off from eager; {compiled_s:.0f} s with compiling"
    return Found(says.format(**figures), figures, problems)


def check_missing_compiler(setup: Setup) -> Found:
    """Ask for compiled steps where no C compiler is in reach: the error names what is missing."""
    if "Triton" in (lacks_for_compiling() or ""):
        return Found.skip("Triton is not installed")
    os.environ["PATH"] = "/nowhere"
    for name in ("CC", "CXX"):
        os.environ.pop(name, None)
    step = make_step(Case(16, 8, setup.device), _COMPILED)
    try:
        step()
    except SettingsError as error:
        return Found(str(error))
    return Found("", problems=["compiled steps ran without a C compiler and said nothing"])
