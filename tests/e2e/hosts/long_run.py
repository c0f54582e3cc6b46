"""The long run: the chain in calm, then each step again while a host is lost in its middle."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tests.e2e.hosts.chain import FINAL, Chain
from tests.e2e.hosts.disturbances import Disturbance, Step
from tests.e2e.hosts.steps import (
    CALM,
    MODALITIES,
    Work,
    compare,
    describe,
    plan_promotion,
    plan_search,
    plan_step,
)

_RUN_S: Final = 900.0
_SIGNS: Final = {
    "following it": "the second run follows the first one's job",
    "Workers failed and are started again": "Ray starts the workers again",
    "Resumed": "resumed from a checkpoint",
    "Waiting for the cluster": "the flow waits for the head",
    "is lost: the cluster has restarted": "the job is lost with its head",
    "second(s) from now": "Prefect tries the task again",
}


def say(text: str) -> None:
    """Print a line, after the time in UTC.

    Args:
        text: The line.
    """
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", flush=True)


@dataclass
class LongRun:
    """Runs the chain on the hosts and disturbs it.

    Args:
        chain: Chain on hosts that run, with the scans on S3.
        failures: One line for each thing that went wrong so far.
    """

    chain: Chain
    failures: list[str] = field(default_factory=list)

    def run_calm(self, steps: Container[Step]) -> None:
        """Run the chain for both modalities without a disturbance, and say what each step made.

        Args:
            steps: Steps that are disturbed later; what none of them needs is left out.
        """
        self._run_calmly("ingest")
        if "train" not in steps and "score" not in steps:
            return
        self._run_calmly("train")
        for work in (plan_search(), *(plan_promotion(each) for each in MODALITIES)):
            began = time.monotonic()
            self._finish(work, self._trigger(work))
            what = f"{work.deployment} {work.parameters.get('model_name', 'slides')}"
            say(f"calm {what}: {time.monotonic() - began:.0f} s")
        if "score" in steps:
            self._run_calmly("score")

    def _run_calmly(self, step: Step) -> None:
        began = time.monotonic()
        works = {modality: plan_step(step, modality, CALM) for modality in MODALITIES}
        runs = {modality: self._trigger(work) for modality, work in works.items()}
        for modality, work in works.items():
            self._finish(work, runs[modality])
            took_s = time.monotonic() - began
            say(f"calm {step} {modality}: {describe(step, modality)}; {took_s:.0f} s")

    def disturb(self, disturbances: Iterable[Disturbance]) -> None:
        """Run steps while hosts are lost; a failure is kept, and the next one goes on.

        Args:
            disturbances: What to do, in this order.
        """
        for each in disturbances:
            words = f"{each.step} {each.modality} | {each.host} {each.fault} {each.seconds:g} s"
            began = time.monotonic()
            try:
                outcome = self._disturb(each)
            except Exception as error:  # noqa: BLE001 -- the next ones tell as much
                outcome = f"FAILED: {str(error)[-3000:]}"
                self.failures.append(f"{words} | {str(error)[:200]}")
            say(f"{words} | {outcome} | {time.monotonic() - began:.0f} s in all")

    def _disturb(self, disturbance: Disturbance) -> str:
        work = plan_step(disturbance.step, disturbance.modality, disturbance.name)
        run = self._trigger(work)
        self._wait_for_middle(work, run)
        say(f"... {disturbance.host} is {disturbance.fault}")
        self._lose(disturbance)
        notes: list[str] = []
        if disturbance.host == "worker" and disturbance.fault == "killed":
            self.chain.give_up(run)  # else Prefect starts it again when it was silent long enough
        elif (self.chain.read_state(run) or {}).get("type") == "COMPLETED":
            notes.append("ended while the host was away")
        notes += self._finish(work, run)
        difference = compare(disturbance.step, disturbance.modality, disturbance.name)
        return f"{'; '.join(notes) or 'went on by itself'} | {difference}"

    def _trigger(self, work: Work) -> str:
        return self.chain.trigger(work.deployment, **work.parameters)

    def _wait_for_middle(self, work: Work, run: str) -> None:
        deadline = time.monotonic() + _RUN_S
        while not work.has_begun():
            self.chain.servers.revive()
            state = self.chain.read_state(run)
            is_over = state is not None and state["type"] in FINAL
            assert not is_over, f"it ended first: {state}\n{self.chain.peek_log(run)}"
            assert time.monotonic() < deadline, f"it does not begin\n{self.chain.peek_log(run)}"
            time.sleep(0.1)

    def _lose(self, disturbance: Disturbance) -> None:
        """Take a host away, and give it back after the time of the disturbance."""
        host = self.chain.lan.hosts[disturbance.host]
        if disturbance.fault == "killed":
            host.kill()
            time.sleep(disturbance.seconds)
            self.chain.servers.restart(host.name)
            return
        host.cut_off()
        try:
            time.sleep(disturbance.seconds)
        finally:
            host.heal()

    def _finish(self, work: Work, run: str) -> list[str]:
        """Wait for a run's good end, triggered once more after a bad one; what its log tells."""
        notes: list[str] = []
        for is_last in (False, True):
            state = self._follow(run, notes)
            log = self.chain.peek_log(run)
            notes += [words for sign, words in _SIGNS.items() if sign in log]
            if state == "COMPLETED":
                return list(dict.fromkeys(notes))
            assert not is_last, f"{state}\n{log}"
            notes.append(f"run {state.lower()}, triggered once more")
            run = self._trigger(work)
        raise AssertionError("unreachable")

    def _follow(self, run: str, notes: list[str]) -> str:
        deadline = time.monotonic() + _RUN_S
        while time.monotonic() < deadline:
            notes += [f"{each} is started again" for each in self.chain.servers.revive()]
            state = self.chain.read_state(run)
            if state is not None and state["type"] in FINAL:
                return str(state["type"])
            time.sleep(1)
        raise AssertionError(f"no end in {_RUN_S:g} s\n{self.chain.peek_log(run)[-3000:]}")
