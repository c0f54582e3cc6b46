"""What the long run does to its hosts: which is lost in which step, how, and for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Step: TypeAlias = Literal["ingest", "train", "score"]
Modality: TypeAlias = Literal["slides", "xrays"]
Fault: TypeAlias = Literal["cut", "killed"]


@dataclass(frozen=True)
class Disturbance:
    """One host that is lost in the middle of a step.

    Args:
        step: Step that runs meanwhile.
        modality: Images that the step works on.
        host: Name of the host.
        fault: `cut` takes it off the network, `killed` ends its processes at once.
        seconds: Seconds until it is healed, or boots again.
    """

    step: Step
    modality: Modality
    host: str
    fault: Fault
    seconds: float

    @property
    def name(self) -> str:
        """Name that its run and outputs bear."""
        return f"{self.host}-{self.fault}"


DISTURBANCES: Final = (
    Disturbance("ingest", "xrays", "s3", "cut", 20),
    Disturbance("ingest", "slides", "control", "cut", 20),
    Disturbance("ingest", "slides", "dask", "killed", 5),
    Disturbance("ingest", "xrays", "dask", "cut", 20),
    Disturbance("score", "slides", "s3", "killed", 5),
    Disturbance("score", "xrays", "worker", "cut", 30),
    Disturbance("score", "slides", "ray-2", "killed", 5),
    Disturbance("score", "slides", "ray-2", "cut", 30),
    Disturbance("train", "slides", "ray-head", "killed", 5),
    Disturbance("train", "xrays", "control", "killed", 5),
    Disturbance("train", "slides", "worker", "killed", 5),
    Disturbance("train", "xrays", "ray-head", "cut", 20),
    Disturbance("train", "slides", "ray-1", "cut", 30),
    Disturbance("train", "xrays", "ray-1", "killed", 5),
)
"""Each host is cut off once and killed once; the steps that a host matters in are spread."""
