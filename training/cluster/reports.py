"""Reports of a training: from the workers through `ray.train.report` to a function of the driver.

Ray Train calls back in its controller, a process of its own; a queue takes the reports on to the
driver, where the progress bar and the tracking client are. Images and scores of a validation are
too large for metrics: they lie next to the checkpoints, and the report names their URL.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import ray
import ray.train
from ray.exceptions import RayError
from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.io import storage
from training.learning.loop import Report
from training.learning.run_folder import Resumption
from training.learning.state import Workers
from training.learning.validation import pack_validation, unpack_validation

# Ray Train fetches reports every two seconds; a worker that reports sooner waits for it.
_REPORT_EVERY_S: Final = 3.0
_RECEIVE_EVERY_S: Final = 0.3
_LAST_ATTEMPTS: Final = 3

OnReport: TypeAlias = Callable[[Report], None]
Message: TypeAlias = Mapping[str, Any]

logger: Final = logging.getLogger(__name__)


@dataclass
class ReportSender:
    """Collects the reports of a worker and sends them to Ray Train every few seconds.

    Attributes:
        run_url: Folder or prefix of the run.
        workers: The workers; all must call the same methods in the same order.
        pending: Reports that were not sent yet; only rank 0 has any.
        checkpoint_url: Latest checkpoint, shown among the metrics.
    """

    run_url: str
    workers: Workers
    pending: list[Message] = field(default_factory=list)
    checkpoint_url: str | None = None
    _sent_at: float = field(default_factory=time.monotonic)

    def add(self, report: Report) -> None:
        """Send a report, at once after a validation or at the end, otherwise with later ones."""
        if self.workers.rank == 0:
            self.pending.append(_describe(report, self.run_url))
        seconds = self.workers.gather(np.array(time.monotonic() - self._sent_at))[0]
        is_last = report.step == report.total_steps
        if report.scores is not None or is_last or seconds >= _REPORT_EVERY_S:
            self.send()

    def resend(self, reports: Iterable[Report], resumption: Resumption) -> None:
        """Send the reports of a checkpoint, as those before an interruption may be lost."""
        if self.workers.rank == 0:
            self.pending = [_describe(report, self.run_url) for report in reports]
        self.send(resumption)

    def send(self, resumption: Resumption | None = None) -> None:
        """Hand everything that is pending to Ray Train."""
        metrics: dict[str, Any] = {"checkpoint_url": self.checkpoint_url}
        if self.pending:
            metrics |= self.pending[-1]["metrics"] | {"step": self.pending[-1]["step"]}
        if resumption is not None:
            metrics["resumption"] = asdict(resumption)
        ray.train.report({**metrics, "reports": self.pending})
        self.pending, self._sent_at = [], time.monotonic()


def _describe(report: Report, run_url: str) -> Message:
    url = None
    if report.scores is not None:
        url = storage.join(run_url, "validations", f"step-{report.step:08d}.npz")
        storage.write_bytes(url, pack_validation(report.scores, report.gallery))
    return {
        "step": report.step,
        "total_steps": report.total_steps,
        "metrics": dict(report.metrics),
        "validation_url": url,
    }


class ForwardReports(UserCallback):
    """Forwards what rank 0 reports to the driver.

    Args:
        queue: Queue that the driver reads.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self,
        run_context: object,  # noqa: ARG002 -- Ray's signature
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,  # noqa: ARG002 -- the same
    ) -> None:
        """Put the metrics of rank 0 into the queue."""
        try:
            self._queue.put(metrics[0])
        except RayError as error:  # it would end the training
            logger.warning("a report does not reach the driver: %s", error)


class Tracker:
    """Calls a tracking function with each report once, in order, and outlives its failures.

    A report that the function fails on is tried again together with the next one.

    Args:
        on_report: Tracking function; None ignores reports.
    """

    def __init__(self, on_report: OnReport | None) -> None:
        self.resumptions: list[Resumption] = []
        self._on_report = on_report
        self._waiting: deque[Report] = deque()
        self._last_step = 0

    def read(self, message: Message) -> None:
        """Track the reports of a message, and note whether workers have resumed."""
        if "resumption" in message:
            self.resumptions.append(Resumption(**message["resumption"]))
            logger.info("Resumed: %s", self.resumptions[-1])
        self.track(map(_restore, message["reports"]))

    def track(self, reports: Iterable[Report]) -> None:
        """Track reports; steps that were passed before are left out."""
        if self._on_report is None:
            return
        for report in reports:
            if report.step > self._last_step:
                self._waiting.append(report)
                self._last_step = report.step
        self._call(attempts=1)

    def close(self) -> None:
        """Try once more what failed, and log which steps stay untracked."""
        missed = [*self._call(attempts=_LAST_ATTEMPTS), *self._waiting]
        if missed:
            steps = [report.step for report in missed]
            logger.error("Reports of these steps were not tracked: %s", steps)

    def _call(self, *, attempts: int) -> list[Report]:
        """Pass on what waits until some calls failed; the last of these waits on."""
        failed: list[Report] = []
        while self._waiting and self._on_report is not None:
            try:
                self._on_report(self._waiting[0])
            except Exception as error:  # noqa: BLE001 -- tracking must not end a training
                logger.warning("Step %d could not be tracked: %s", self._waiting[0].step, error)
                if len(failed) + 1 == attempts:
                    break
                failed.append(self._waiting[0])
            self._waiting.popleft()
        return failed


def _restore(message: Message) -> Report:
    scores, gallery = None, None
    if message["validation_url"] is not None:
        scores, gallery = unpack_validation(storage.read_bytes(message["validation_url"]))
    return Report(message["step"], message["total_steps"], message["metrics"], gallery, scores)


def open_queue() -> Queue:
    """Start a queue on the driver's node, so that the loss of another node does not end it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


@contextmanager
def receiving(queue: Queue, tracker: Tracker) -> Iterator[None]:
    """Track the messages of a queue in another thread while the block runs, and the rest after."""
    stop = threading.Event()

    def receive() -> None:
        is_last = False
        while not is_last:
            is_last = stop.wait(_RECEIVE_EVERY_S)
            try:
                for message in queue.get_nowait_batch(queue.qsize()):
                    tracker.read(message)
            except Exception as error:  # noqa: BLE001 -- a lost report must not end a training
                logger.warning("a report was lost: %s", error)

    receiver = threading.Thread(target=receive, name="training-reports", daemon=True)
    receiver.start()
    try:
        yield
    finally:
        stop.set()
        receiver.join()
        tracker.close()
