"""The status of a dataset: sealed, being made, or left halfway, from what lies there."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from pipeline.errors import AbsentError, SchemaError
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.progress import HEARTBEAT_S, read_progress
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import PROGRESS, Dataset, MissingDatasetError, open_dataset, read_root
from pipeline.store.layout import MANIFEST
from pipeline.store.part import is_there

# A running ingest writes its progress several times in this time.
STALE_S: Final = 4 * HEARTBEAT_S
_CHECKERS: Final = 16
_VISITED: Final = ("made", "kept", "skipped", "failed")
_OUTCOMES: Final = ("done", "skipped", "failed")
State: TypeAlias = Literal["running", "stalled", "sealed", "refused", "interrupted", "failed"]


@dataclass(frozen=True)
class DatasetStatus:
    """What is at a dataset's URL, and how far its ingest is.

    Args:
        url: URL of the dataset.
        state: State of the last ingest: `running`; `stalled`, which says that it has written
            nothing for some minutes and has probably been killed; `sealed`; `refused`,
            `interrupted` or `failed`.
        is_sealed: Whether there is a sealed dataset that can be read now; a running ingest leaves
            it readable until it seals the next one.
        reason: Why the last ingest did not seal; empty otherwise.
        counts: Items of the last ingest, by what became of them. While it runs: `items` in all
            and `made`, `kept`, `skipped`, `failed`. Afterwards, as in the manifest: `items`,
            `done`, `skipped`, `failed`.
        visited_count: Items that the last ingest has visited: slides, or parts of images.
        kept_count: Items that the last ingest kept as an earlier one had made them: slides, or
            parts of images; None where unknown.
        failures: Failed items with the reason; the first hundred while an ingest runs.
        skips: Skipped items with the reason, as in the manifest; none while an ingest runs.
        read_bytes: Bytes of sources that the last ingest has read.
        stored_bytes: Bytes of the images that it has made or kept.
        began_at: Time at which the last ingest began; None where unknown.
        updated_at: Time of its last sign of life; None where unknown.
        now: Time of this status.
        host: Machine that drives the last ingest; empty where unknown.
        pid: Number of its process there; 0 where unknown.
        image_count: Images of the sealed dataset.
        unreadable_count: Number of rows that are unreadable.
        part_count: Parts of the sealed dataset.
        marked: Names of its parts that are gone or that `verify --repair` has marked, which the
            next ingest makes again; none while an ingest runs.
        is_damaged: Whether `ingest.json` is damaged, so that nothing is known of the last ingest.
        source_identity: Sign that a source has changed for a later run: `bytes`, or
            `size and time`.
        fingerprint: Fingerprint of the sealed dataset; empty where there is none.
        disk_bytes: Size of all objects below the URL.
        object_count: Number of all objects below the URL.
    """

    url: str
    state: State
    is_sealed: bool
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    visited_count: int = 0
    kept_count: int | None = None
    failures: tuple[ManifestEntry, ...] = ()
    skips: tuple[ManifestEntry, ...] = ()
    read_bytes: int = 0
    stored_bytes: int = 0
    began_at: datetime | None = None
    updated_at: datetime | None = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    host: str = ""
    pid: int = 0
    image_count: int = 0
    unreadable_count: int = 0
    part_count: int = 0
    marked: tuple[str, ...] = ()
    is_damaged: bool = False
    source_identity: str = ""
    fingerprint: str = ""
    disk_bytes: int = 0
    object_count: int = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds from the beginning of the last ingest to its last sign of life."""
        if self.began_at is None or self.updated_at is None:
            return 0.0
        return (self.updated_at - self.began_at).total_seconds()

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign of life of the last ingest."""
        if self.updated_at is None:
            return 0.0
        return max(0.0, (self.now - self.updated_at).total_seconds())

    @property
    def items_per_s(self) -> float | None:
        """Items visited a second; None before the first."""
        if not self.visited_count or self.elapsed_s <= 0:
            return None
        return self.visited_count / self.elapsed_s

    @property
    def left_s(self) -> float | None:
        """Seconds left while the ingest runs, if items go on as fast; None where unknown."""
        rate = self.items_per_s
        if self.state != "running" or rate is None:
            return None
        return max(0.0, (self.counts["items"] - self.visited_count) / rate - self.silent_s)

    @property
    def failed_count(self) -> int:
        """Number of failed items of the last ingest."""
        return self.counts.get("failed", 0)


def read_status(url: str) -> DatasetStatus:
    """Read the status of a dataset that is sealed, being made, or was left halfway.

    Args:
        url: Path or URL of the dataset.

    Raises:
        MissingDatasetError: There is none, and no ingest has begun one.
        SchemaError: It is of another schema version, or all that lies there is damaged.
        StorageError: It cannot be read.
    """
    url = storage.plain_url(url)
    progress, dataset = read_progress(url), _open(url)
    is_damaged = progress is None and storage.exists(storage.join(url, PROGRESS))
    if progress is None and dataset is None:
        raise _explain_absence(url, is_damaged=is_damaged)
    objects = storage.list_objects(url + "/")
    now, known = datetime.now(UTC), progress or {}
    state = name_state(known, now)
    has_manifest = state == "sealed" or (state == "refused" and dataset is None)
    entries, counts = (_read_manifest(url) if has_manifest else None) or _read_counts(known)
    sealed: Mapping[str, Any] = dataset.attributes if dataset else {}
    return DatasetStatus(
        url=url,
        state=state,
        is_sealed=dataset is not None,
        reason=str(known.get("reason", "")),
        counts=counts,
        visited_count=sum(int(known.get(name, 0)) for name in _VISITED),
        kept_count=known.get("kept"),
        failures=tuple(entry for entry in entries if entry.state == "failed"),
        skips=tuple(entry for entry in entries if entry.state == "skipped"),
        read_bytes=int(known.get("read_bytes", 0)),
        stored_bytes=int(known.get("stored_bytes", 0)),
        began_at=_parse_time(known.get("began_at")),
        updated_at=_parse_time(known.get("updated_at")),
        now=now,
        host=str(known.get("host", "")),
        pid=int(known.get("pid", 0)),
        image_count=dataset.image_count if dataset else 0,
        unreadable_count=int(sealed.get("unreadable_count", 0)),
        part_count=len(dataset.parts) if dataset else 0,
        marked=_find_marked(dataset) if dataset and state != "running" else (),
        is_damaged=is_damaged,
        source_identity=str(sealed.get("source_identity", "")),
        fingerprint=dataset.fingerprint if dataset else "",
        disk_bytes=sum(info.size_bytes for info in objects),
        object_count=len(objects),
    )


def _explain_absence(url: str, *, is_damaged: bool) -> SchemaError:
    if is_damaged:
        place = storage.join(url, PROGRESS)
        return SchemaError(place, "is damaged, and no dataset is sealed", "Run the ingest again")
    return MissingDatasetError(
        url,
        "no dataset here, and no ingest has begun one",
        "Check the URL, or make one with `normscope ingest`",
    )


def _find_marked(dataset: Dataset) -> tuple[str, ...]:
    """Find the parts that the next ingest makes again; the root document of each is read."""
    with ThreadPoolExecutor(_CHECKERS, thread_name_prefix="parts") as threads:
        there = threads.map(lambda part: is_there(dataset.url, part), dataset.parts)
        return tuple(
            part.name for part, is_whole in zip(dataset.parts, there, strict=True) if not is_whole
        )


def _open(url: str) -> Dataset | None:
    """Open the dataset; None where there is none or its first ingest has not sealed it."""
    try:
        return open_dataset(url)
    except SchemaError:
        if read_root(url) is None:
            return None
        raise


def name_state(known: Mapping[str, Any], now: datetime) -> State:
    """Name the state of the last ingest; a dataset without a record of one is sealed.

    Args:
        known: Content of the dataset's `ingest.json`; empty where there is none.
        now: Time to tell a silent ingest by; a sign of life from after it is none.
    """
    state: State = known.get("state", "sealed")
    updated_at = _parse_time(known.get("updated_at"))
    if state == "running" and updated_at and abs((now - updated_at).total_seconds()) > STALE_S:
        return "stalled"
    return state


_Counted: TypeAlias = tuple[tuple[ManifestEntry, ...], dict[str, int]]


def _read_manifest(url: str) -> _Counted | None:
    """Read entries and counts from the manifest; None where there is none that can be read."""
    try:
        entries = read_manifest(storage.join(url, MANIFEST))
    except (AbsentError, ValueError, KeyError, TypeError):
        return None
    states = [entry.state for entry in entries]
    return entries, {"items": len(entries), **{n: states.count(n) for n in _OUTCOMES}}


def _read_counts(known: Mapping[str, Any]) -> _Counted:
    """Read failures and counts from the progress of an ingest that has not sealed."""
    counts = {name: int(known.get(name, 0)) for name in ("items", "made", "kept", "skipped")}
    counts["failed"] = int(known.get("failure_count", 0))
    listed = known.get("failures", ())
    return tuple(ManifestEntry(e["item"], "failed", e["reason"]) for e in listed), counts


def _parse_time(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None
