"""`ingest.json`: how far an ingest is, for whoever looks at the dataset while it is made."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, NonNegativeInt

from pipeline.errors import AbsentError, NormscopeError, SettingsError, StorageError
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import PROGRESS

_INTERVAL_S: Final = 5.0
# One item may take an hour; a file that is older than a few of these belongs to a dead ingest.
HEARTBEAT_S: Final = 30.0
_NAMED: Final = 100
_STOPS: Final = (KeyboardInterrupt, SystemExit)


def _require_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("no time zone")
    return text


_Time = Annotated[str, AfterValidator(_require_time)]


class _Failure(BaseModel):
    """A failed item, as the file names it."""

    model_config = ConfigDict(strict=True)

    item: str
    reason: str


class _Known(BaseModel):
    """What the file says."""

    model_config = ConfigDict(strict=True)

    state: Literal["running", "sealed", "refused", "interrupted", "failed"]
    host: str
    pid: NonNegativeInt
    began_at: _Time
    updated_at: _Time
    items: NonNegativeInt
    made: NonNegativeInt
    kept: NonNegativeInt
    skipped: NonNegativeInt
    failed: NonNegativeInt
    failure_count: NonNegativeInt
    failures: list[_Failure]
    read_bytes: NonNegativeInt
    stored_bytes: NonNegativeInt
    reason: str = ""


class ProgressFile:
    """The progress of a running ingest, written every few seconds.

    Its state is `running`, then `sealed`, `refused`, `interrupted` or, after an error of ours,
    `failed`; `reason` says why it did not seal.

    Args:
        url: URL of the dataset.
        items: Number of items to visit.
    """

    def __init__(self, url: str, items: int) -> None:
        self._dataset_url, self._url = url, storage.join(url, PROGRESS)
        self._written_at = 0.0
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {
            "state": "running",
            "host": platform.node(),
            "pid": os.getpid(),
            "began_at": _now(),
            "items": items,
            "made": 0,
            "kept": 0,
            "skipped": 0,
            "failed": 0,
            "failure_count": 0,
            "failures": [],
            "read_bytes": 0,
            "stored_bytes": 0,
        }

    @classmethod
    @contextmanager
    def begin(cls, url: str, items: int) -> Iterator[Self]:
        """Write the file before the work, during it, and at its end, whichever way it ends.

        Args:
            url: URL of the dataset.
            items: Number of items to visit.
        """
        file = cls(url, items)
        file._write()
        ended = threading.Event()
        beat = threading.Thread(target=file._beat, args=(ended,), daemon=True)
        beat.start()
        try:
            yield file
        except BaseException as error:
            ended.set()
            beat.join()
            file._known |= file._explain(error)
            with suppress(StorageError):  # the error that ended the ingest is the one to be seen
                file._write()
            raise
        ended.set()
        beat.join()
        file._known["state"] = "sealed"
        file._write()

    def count(
        self, state: str, *, failures: Sequence[ManifestEntry], read_bytes: int, stored_bytes: int
    ) -> None:
        """Count one visited item.

        Args:
            state: `made`, `kept`, `skipped` or `failed`.
            failures: Entries of the manifest of what failed.
            read_bytes: Bytes of the source that were read.
            stored_bytes: Bytes of the part's images.
        """
        with self._lock:
            known = self._known
            known[state] += 1
            known["failure_count"] += len(failures)
            named = [{"item": entry.item, "reason": entry.reason} for entry in failures]
            known["failures"] = [*known["failures"], *named][:_NAMED]
            known["read_bytes"] += read_bytes
            known["stored_bytes"] += stored_bytes
        if time.monotonic() - self._written_at > _INTERVAL_S:
            self._write()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_S):
            with suppress(StorageError):  # a server that is away for a while ends no ingest
                self._write()

    def _explain(self, error: BaseException) -> dict[str, str]:
        """Say how the ingest ended; only text that names no file of a source is kept."""
        if isinstance(error, _STOPS):
            return {"state": "interrupted", "reason": "interrupted"}
        if not isinstance(error, NormscopeError):
            return {"state": "failed", "reason": type(error).__name__}
        is_of_dataset = f"{error.item}/".startswith(f"{self._dataset_url}/")
        is_public = is_of_dataset or isinstance(error, SettingsError)
        said = str(error) if is_public else f"{type(error).__name__}: {error.remedy}"
        return {"state": "refused", "reason": said}

    def _write(self) -> None:
        with self._lock:
            self._written_at = time.monotonic()
            content = {**self._known, "updated_at": _now()}
            data = json.dumps(content, indent=1, ensure_ascii=False)
            storage.write_bytes(self._url, (data + "\n").encode(errors="backslashreplace"))


def read_progress(url: str) -> Mapping[str, Any] | None:
    """Read the progress of a dataset's last ingest; None where there is none or it is damaged.

    Args:
        url: URL of the dataset.
    """
    try:
        found = json.loads(storage.read_bytes(storage.join(url, PROGRESS)))
        _Known.model_validate(found)
    except (AbsentError, ValueError):  # pydantic's own among them
        return None
    known: Mapping[str, Any] = found
    return known


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
