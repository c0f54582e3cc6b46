"""System metrics of the nodes that train: MLflow's own monitor, on each node."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeMonitor:
    """Logs processor, memory, network and GPUs of a node to a run, as `system/NODE/...`.

    It is sent to the workers, which import MLflow only where they use it.

    Args:
        run_id: MLflow's identifier of the run.
        tracking_uri: URL of the MLflow server, whose password the node's environment holds.
        every_s: Seconds between two samples.
    """

    run_id: str
    tracking_uri: str
    every_s: float = 10.0

    @contextmanager
    def watch(self, node: str) -> Iterator[None]:
        """Log while the block runs; whatever goes wrong is logged, and does not end the block.

        Args:
            node: Name of the node among the metrics, e.g. `node-0`.
        """
        from mlflow.system_metrics.system_metrics_monitor import (  # noqa: PLC0415 -- slow
            SystemMetricsMonitor,
        )

        try:
            monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]  # MLflow's own
                self.run_id,
                sampling_interval=self.every_s,
                resume_logging=True,
                node_id=node,
                tracking_uri=self.tracking_uri,
            )
            monitor.start()  # type: ignore[no-untyped-call]  # the same
        except Exception as error:  # noqa: BLE001 -- metrics must not end a training
            logger.warning("No system metrics of %s: %s", node, error)
            yield
            return
        try:
            yield
        finally:
            monitor.finish()  # type: ignore[no-untyped-call]  # the same
