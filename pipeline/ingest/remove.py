"""Removes a patient or a slide from a sealed dataset: these parts alone change.

    find rows -> write what stays of shared parts -> seal without them -> delete what was theirs

The root document commits, as in an ingest: whoever is killed before leaves the earlier dataset,
and one killed after it is finished by a rerun. The removal reads no source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AbsentError, SchemaError, SettingsError
from pipeline.ingest.manifest import read_manifest, write_manifest
from pipeline.ingest.parts import Draft, digest_image, make_part
from pipeline.ingest.progress import read_progress
from pipeline.ingest.run import write_seal
from pipeline.ingest.sources import SourceRead
from pipeline.ingest.status import name_state
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import PROGRESS, Dataset, open_dataset
from pipeline.store.layout import MANIFEST, list_places, sweep, sweep_pictures
from pipeline.store.part import OpenPart, Part, name_place
from pipeline.store.spec import DatasetSpec, recall_spec
from pipeline.store.table import compute_fingerprint, write_table

Kind: TypeAlias = Literal["patient", "slide"]


@dataclass(frozen=True)
class Removal:
    """What a removal takes out of a dataset.

    Args:
        url: URL of the dataset.
        kind: `patient` or `slide`.
        name: Id of the patient or slide, as the dataset has it.
        fingerprint: Fingerprint of the dataset before.
        image_count: Number of images that go.
        left_count: Number of images that stay.
        rows: Rows that stay of each part that changes, by the part's number; none where the part
            goes as a whole.
        item_ids: Ids of the slides or images that go.
    """

    url: str
    kind: Kind
    name: str
    fingerprint: str
    image_count: int
    left_count: int
    rows: dict[int, NDArray[np.int64]]
    item_ids: tuple[str, ...]

    @property
    def gone_count(self) -> int:
        """Number of parts that go as a whole."""
        return sum(not len(rows) for rows in self.rows.values())

    @property
    def changed_count(self) -> int:
        """Number of parts that are written again without the images that go."""
        return len(self.rows) - self.gone_count


def plan_removal(url: str, kind: Kind, name: str) -> Removal:
    """Find what belongs to a patient or slide; nothing is written.

    In a dataset of images both are what splits never divide, the column `group_id`.

    Args:
        url: Path or URL of the dataset.
        kind: Whether `name` is of a patient or of a slide.
        name: Id of the patient or slide, exactly as the dataset has it.

    Raises:
        SchemaError: There is no sealed dataset.
        SettingsError: An ingest is running.
    """
    url = storage.plain_url(url)
    _require_idle(url)
    dataset = open_dataset(url)
    by_row = "group_id" in dataset.attributes["columns"]
    rows: dict[int, NDArray[np.int64]] = {}
    ids: list[str] = []
    for number, part in enumerate(dataset.parts):
        if not by_row and _is_of(part, kind, name):
            rows[number], found = np.empty(0, np.int64), [part.name]
        elif by_row and part.image_count:
            opened = dataset.open_part(number)
            goes = opened.column("group_id") == name
            if not goes.any():
                continue
            rows[number], found = np.flatnonzero(~goes), opened.column("image_id")[goes].tolist()
        else:
            continue
        ids += found
    gone = sum(dataset.parts[number].image_count - len(stay) for number, stay in rows.items())
    left = dataset.image_count - gone
    return Removal(url, kind, name, dataset.fingerprint, gone, left, rows, tuple(ids))


def apply_removal(removal: Removal) -> str:
    """Seal the dataset without what is to be removed.

    Args:
        removal: Rows and files to remove.

    Returns:
        Fingerprint of the dataset after it.

    Raises:
        SettingsError: No image would be left.
        SchemaError: A part that holds other images too is damaged.
        StorageError: The dataset cannot be written, or an ingest has sealed it meanwhile.
    """
    url, dataset = removal.url, open_dataset(removal.url)
    if not removal.left_count:
        raise SettingsError(
            url,
            f"{removal.kind} {removal.name!r} has all its {dataset.image_count} images",
            "Delete the dataset as a whole",
        )
    spec = recall_spec(dataset.attributes)
    parts = []
    for number, part in enumerate(dataset.parts):
        stay = removal.rows.get(number)
        if stay is None:
            parts.append(part)
        elif len(stay):
            parts.append(_rewrite(url, spec, dataset.open_part(number), stay))
    _forget_items(url, removal.item_ids)
    fingerprint = compute_fingerprint(spec, parts)
    attributes = {
        **dataset.attributes,
        "fingerprint": fingerprint,
        "image_count": sum(part.image_count for part in parts),
        "unreadable_count": sum(part.unreadable_count for part in parts),
        "parts_table": write_table(url, parts),
    }
    write_seal(url, attributes, dataset.attributes)
    return fingerprint


def clean_removal(url: str, refresh_review: Callable[[Dataset], object]) -> None:
    """Delete all that the sealed dataset does not name; a rerun after a kill does the same.

    Args:
        url: URL of the dataset.
        refresh_review: Function that writes the review of a dataset of images again.
    """
    dataset = open_dataset(url)
    named = {part.place for part in dataset.parts}
    sweep(url, list_places(url) - named, str(dataset.attributes["parts_table"]))
    pictures = {str(part.facts.get("review", "")) for part in dataset.parts} - {""}
    if not pictures:
        refresh_review(dataset)
        return
    sweep_pictures(url, pictures)


def _require_idle(url: str) -> None:
    known = read_progress(url)
    if known is not None and name_state(known, datetime.now(UTC)) == "running":
        raise SettingsError(
            url, "an ingest is running", "Wait for its end: `normscope status` says when"
        )


def _is_of(part: Part, kind: Kind, name: str) -> bool:
    """Whether the part of a slide belongs to a patient, or is the slide."""
    if kind == "slide":
        return part.name == name
    return name in {part.group_id, part.facts.get("patient")}


def _rewrite(url: str, spec: DatasetSpec, opened: OpenPart, rows: NDArray[np.int64]) -> Part:
    """Write a part again with some of its rows, in a folder of its own.

    It has no key of work: the versions of its files are not known here. The next ingest reads
    these files again, and where the others are gone from its source, makes the same part.
    """
    part = opened.part
    columns = {name: opened.column(name)[rows] for name in spec.columns}
    place = name_place(part.name, "removed", part.place)
    draft = Draft(
        part.name, place, "", columns, part.source_version, part.source_digest, part.facts
    )

    def read(start: int, stop: int, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
        return _copy_rows(opened, rows[start:stop], images)

    return make_part(url, spec, draft, read)


def _copy_rows(
    opened: OpenPart, rows: NDArray[np.int64], images: NDArray[np.uint8]
) -> Iterator[SourceRead]:
    """Copy images of a part, which must still have the pixels that were written."""
    read, size, reasons = opened.open_chunks(), opened.chunk_images, opened.read_reasons()
    digests, done = opened.column("pixel_digest"), 0
    for chunk, group in groupby(rows.tolist(), key=lambda row: row // size):
        own, found = list(group), read(chunk)
        for row in own:
            images[done] = image = found[row - chunk * size]
            if row not in reasons and digest_image(image) != digests[row]:
                raise SchemaError(
                    opened.url,
                    f"row {row} has other pixels than were written",
                    "Run `normscope verify --repair` and the ingest first",
                )
            done += 1
        yield SourceRead(tuple(reasons.get(row) for row in own), {})


def _forget_items(url: str, item_ids: Sequence[str]) -> None:
    """Take items out of the manifest, and out of the failures of the last ingest."""
    ids = frozenset(item_ids)
    place = storage.join(url, MANIFEST)
    try:
        entries = read_manifest(place)
    except (AbsentError, ValueError, KeyError, TypeError):
        entries = ()
    gone = {entry.item for entry in entries if _names(entry.item, ids)}
    if gone:
        left = [_forget_remark(entry, gone) for entry in entries if entry.item not in gone]
        write_manifest(place, left, sealed_at=datetime.now(UTC))
    progress: dict[str, Any] = dict(read_progress(url) or {})
    failures = [each for each in progress.get("failures", []) if not _names(each["item"], ids)]
    if len(failures) != len(progress.get("failures", [])):
        progress["failures"] = failures
        data = json.dumps(progress, indent=1, ensure_ascii=False)
        storage.write_bytes(storage.join(url, PROGRESS), f"{data}\n".encode())


def _names(item: str, ids: frozenset[str]) -> bool:
    """Whether an item of the manifest, a path or a public name, is one of some slides or images."""
    segments = item.split("/")
    below = ("/".join(segments[at:]) for at in range(len(segments)))
    return any(
        path in ids or str(PurePosixPath(path).with_suffix("")) in ids for path in below if path
    )


def _forget_remark(entry: ManifestEntry, gone: set[str]) -> ManifestEntry:
    """Drop a remark that names an item which goes, e.g. that both are of the same bytes."""
    return replace(entry, reason="") if any(item in entry.reason for item in gone) else entry
