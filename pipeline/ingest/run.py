"""Items -> parts -> seal: the one way in which any dataset is made.

Each task makes one whole part, and nothing else writes there. A part is made again only if its key
of work or its source has changed, and then in another folder, so that readers of the sealed dataset
keep what they read. The root document is written last: it names the new table of parts, and seals.
Whoever is killed before leaves the earlier dataset, or none, and a rerun finishes the work.

    list -> visit each item: keep or make its part -> arrange the parts -> seal -> sweep
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from pipeline.errors import SchemaError, SourceError, StorageError
from pipeline.ingest.manifest import add_remark, write_manifest
from pipeline.ingest.preflight import check_before_spending
from pipeline.ingest.progress import ProgressFile
from pipeline.io import storage
from pipeline.records import JSON, ManifestEntry, Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import open_dataset, read_root
from pipeline.store.layout import (
    MANIFEST,
    drop_old_arrays,
    lacks_dataset,
    list_places,
    require_destination,
    sweep,
)
from pipeline.store.part import Part, SharedFacts, read_whole
from pipeline.store.spec import ROOT, SCHEMA_VERSION, DatasetSpec, code_version, encode_root
from pipeline.store.table import compute_fingerprint, write_table

T = TypeVar("T")
_CHECKERS: Final = 16
_CHECKED_AT_ONCE: Final = 256  # a waiting check takes a kilobyte


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a visit of one item gave.

    Args:
        part: The item's part; None where it has none.
        entries: Entries of the manifest.
        is_kept: Whether an earlier run had made the part.
        read_bytes: Bytes of the source that were read.
    """

    part: Part | None
    entries: tuple[ManifestEntry, ...]
    is_kept: bool = False
    read_bytes: int = 0

    @property
    def state(self) -> str:
        """The item's state in a word: `made`, `kept`, `skipped` or `failed`."""
        if self.part is None:
            return "failed"
        if not self.part.image_count:
            return "skipped"
        return "kept" if self.is_kept else "made"


@dataclass(frozen=True)
class Work(Generic[T]):
    """What an ingest does.

    Args:
        spec: Specification of the dataset.
        items: Items to visit, each with its own name.
        visit: Picklable function that keeps or makes the part of an item.
        give_up: Function that gives the outcome of an item that kills every worker.
        arrange: Function that orders the parts and gives each its group and split; and remarks
            for the manifest, by item.
        weigh: Function that gives an item's share of the progress.
        rejected: Items that the source itself left out, for the manifest.
        source_identity: Basis on which a later run calls a source changed: `bytes`, or `size and
            time`.
    """

    spec: DatasetSpec
    items: Sequence[T]
    visit: Callable[[T], Outcome]
    give_up: Callable[[T], Outcome]
    arrange: Callable[[Sequence[Part]], tuple[Sequence[Part], Mapping[str, str]]]
    weigh: Callable[[T], int]
    rejected: tuple[ManifestEntry, ...] = ()
    source_identity: str = "bytes"


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest.

    Args:
        url: URL of the sealed dataset.
        fingerprint: SHA-256 over the dataset's content and parameters.
        image_count: Number of rows, unreadable ones included.
        unreadable_count: Number of rows marked unreadable.
        parts_made: Number of parts written by this run.
        parts_kept: Number of parts that an earlier run had made from the same input.
        manifest: One entry for every item, with what became of it.
        seconds: Wall time in seconds.
    """

    url: str
    fingerprint: str
    image_count: int
    unreadable_count: int
    parts_made: int
    parts_kept: int
    manifest: tuple[ManifestEntry, ...]
    seconds: float

    @property
    def failures(self) -> tuple[ManifestEntry, ...]:
        """The items that failed."""
        return tuple(entry for entry in self.manifest if entry.state == "failed")


def ingest(
    url: str,
    work: Work[Any],
    map_work: MapWork,
    *,
    on_progress: Progress = ignore_progress,
) -> IngestReport:
    """Write and seal a dataset; run again after any interruption to finish it.

    Args:
        url: URL of the dataset.
        work: Items to visit, and the functions that make parts of them.
        map_work: An engine of `pipeline.runtime.engines`.
        on_progress: Called with the number of items, or of images, done and in all.

    Raises:
        StorageError: The destination cannot be written, or another ingest has sealed it meanwhile.
        SourceError: No item gives an image.
        SettingsError: Something else lies at the destination, or a part needs more memory than a
            worker has.
    """
    began = time.monotonic()
    url = storage.plain_url(url)
    require_destination(url)
    before, places = read_root(url), list_places(url)
    with ProgressFile.begin(url, len(work.items)) as file:
        check_before_spending(url, work.spec, work.items, map_work)
        outcomes = _visit_all(work, map_work, file, on_progress)
        parts, remarks = work.arrange([each.part for each in outcomes if each.part is not None])
        entries = [add_remark(entry, remarks) for each in outcomes for entry in each.entries]
        manifest = (*entries, *work.rejected)
        _require_images(url, parts, manifest)
        _require_whole(url, outcomes)
        drop_old_arrays(url)
        fingerprint, table = _seal(url, work, parts, before)
        write_manifest(storage.join(url, MANIFEST), manifest, sealed_at=datetime.now(UTC))
        sweep(url, places - {part.place for part in parts}, table)
    return IngestReport(
        url=url,
        fingerprint=fingerprint,
        image_count=sum(part.image_count for part in parts),
        unreadable_count=sum(part.unreadable_count for part in parts),
        parts_made=sum(each.state == "made" for each in outcomes),
        parts_kept=sum(each.state == "kept" for each in outcomes),
        manifest=manifest,
        seconds=time.monotonic() - began,
    )


def read_known_parts(url: str) -> dict[str, Part]:
    """Read the parts of an earlier ingest, by name; none where there is no dataset of this schema.

    Args:
        url: URL of the dataset.
    """
    try:
        return {part.name: part for part in open_dataset(url).parts}
    except SchemaError:
        return {}


def _visit_all(
    work: Work[Any], map_work: MapWork, file: ProgressFile, on_progress: Progress
) -> list[Outcome]:
    """Visit every item, and keep the outcomes in the order of the items' names."""
    weights = [work.weigh(item) for item in work.items]
    total, done = sum(weights), 0
    on_progress(0, total)
    outcomes: list[tuple[int, Outcome]] = []
    visit, give_up = _Numbered(work.visit), _Numbered(work.give_up)
    for number, found in map_work(visit, list(enumerate(work.items)), give_up=give_up):
        outcome = replace(found, part=_share(found.part)) if found.part else found
        outcomes.append((number, outcome))
        done += weights[number]
        file.count(
            outcome.state,
            failures=[entry for entry in outcome.entries if entry.state == "failed"],
            read_bytes=outcome.read_bytes,
            stored_bytes=outcome.part.stored_bytes if outcome.part else 0,
        )
        on_progress(done, total)
    return [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0])]


def _share(part: Part) -> Part:
    """Let a part share what it can with the others."""
    return replace(part, facts=SharedFacts(part.facts))


@dataclass(frozen=True)
class _Numbered:
    """Applies a function to a numbered item, and numbers the result alike."""

    function: Callable[[Any], Outcome]

    def __call__(self, item: tuple[int, Any]) -> tuple[int, Outcome]:
        return item[0], self.function(item[1])


def _require_images(url: str, parts: Iterable[Part], manifest: Sequence[ManifestEntry]) -> None:
    """Refuse an empty dataset; where there is none yet, a manifest says what became of it."""
    if any(part.image_count for part in parts):
        return
    reason, remedy = "nothing was listed", "Check the source's URL and filters"
    if manifest:
        first, count = manifest[0], len(manifest)
        reason = f"none of {count} items gives one, e.g. {first.item}: {first.reason}"
        if lacks_dataset(url):
            place = storage.join(url, MANIFEST)
            write_manifest(place, manifest, ended_at=datetime.now(UTC))
            remedy = f"{place} names them all"
    raise SourceError(url, f"no image to write ({reason})", remedy)


def _require_whole(url: str, outcomes: Sequence[Outcome]) -> None:
    """Check that every part is still there, and those that were made now with all their objects.

    Another ingest may have deleted them, or have been killed while it wrote in the same place.
    """
    found = list_places(url)
    placed = [(each.part, each.is_kept) for each in outcomes if each.part and each.part.place]
    made = [part for part, is_kept in placed if not is_kept]
    damaged: list[Part] = []
    with ThreadPoolExecutor(_CHECKERS, thread_name_prefix="parts") as threads:
        for first in range(0, len(made), _CHECKED_AT_ONCE):
            some = made[first : first + _CHECKED_AT_ONCE]
            wholes = threads.map(read_whole, [storage.join(url, part.place) for part in some])
            damaged += [part for part, whole in zip(some, wholes, strict=True) if whole is None]
    gone = [part for part, _ in placed if part.place not in found]
    for part in (*gone, *damaged):
        raise StorageError(
            url, f"part {part.name!r} has been deleted by another ingest", "Run again"
        )


def _seal(
    url: str, work: Work[Any], parts: Sequence[Part], before: dict[str, Any] | None
) -> tuple[str, str]:
    """Write the table of parts and the root document; return fingerprint and table's name.

    Raises:
        StorageError: Another ingest has sealed the dataset since this one began.
    """
    fingerprint = compute_fingerprint(work.spec, parts)
    table = write_table(url, parts)
    attributes: dict[str, JSON] = {
        **work.spec.attributes(),
        "stamp": dict(work.spec.stamp),
        "code_version": code_version(),
        "source_identity": work.source_identity,
        "sealed": True,
        "fingerprint": fingerprint,
        "image_count": sum(part.image_count for part in parts),
        "unreadable_count": sum(part.unreadable_count for part in parts),
        "parts_table": table,
    }
    write_seal(url, attributes, before)
    return fingerprint, table


def write_seal(url: str, attributes: Mapping[str, JSON], before: Mapping[str, Any] | None) -> None:
    """Write the root document of a dataset, unless another has been written meanwhile.

    Args:
        url: URL of the dataset.
        attributes: Attributes of the document to write.
        before: Attributes of the document that was read at the beginning; None without one.

    Raises:
        StorageError: Another ingest has sealed the dataset since.
    """
    if _name_seal(read_root(url)) not in {_name_seal(before), attributes["fingerprint"]}:
        raise StorageError(url, "another ingest has sealed it meanwhile", "Run again")
    data, target = encode_root(attributes), storage.join(url, ROOT)
    if not storage.holds(target, data):
        storage.write_bytes(target, data)


def _name_seal(root: Mapping[str, Any] | None) -> object:
    is_current = root is not None and root.get("normscope_schema") == SCHEMA_VERSION
    return str(root["fingerprint"]) if root is not None and is_current else None
