"""Removes a patient or a slide from a sealed dataset: these parts alone change.

    find rows -> write what stays of shared parts -> seal without them -> delete what was theirs

The root document commits, as in an ingest: whoever is killed before leaves the earlier dataset,
and one killed after it is finished by a rerun. The removal reads no source.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, Literal, TypeAlias

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
# Its images are known by the names of their files, in whatever folder or archive; those of all
# other sources, like slides, by their paths below it.
_NAMED_BY_FILE: Final = "chestxray14"
_SERIES: Final = re.compile(r"\d+(\.\d+)+")  # of a DICOM slide whose folder holds several
_UNKNOWN_CELL: Final = " is recorded as unknown"


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
        SettingsError: The name is empty, an ingest is running, or no image would be left.
    """
    if not name:
        raise SettingsError(kind, "its id is empty", "Give the id as the dataset has it")
    url = storage.plain_url(url)
    _require_idle(url)
    dataset = open_dataset(url)
    rows, ids = _find_rows(dataset, kind, name)
    gone = sum(dataset.parts[number].image_count - len(stay) for number, stay in rows.items())
    left = dataset.image_count - gone
    if rows and not left:
        raise SettingsError(
            url,
            f"{kind} {name!r} has all its {dataset.image_count} images",
            "Delete the dataset as a whole",
        )
    return Removal(url, kind, name, dataset.fingerprint, gone, left, rows, ids)


def apply_removal(removal: Removal) -> str:
    """Seal the dataset without what is to be removed.

    Args:
        removal: Rows and files to remove.

    Returns:
        Fingerprint of the dataset after it.

    Raises:
        SchemaError: A part that holds other images too is damaged.
        StorageError: The dataset cannot be written, or an ingest has sealed it meanwhile.
    """
    url, dataset = removal.url, open_dataset(removal.url)
    spec = recall_spec(dataset.attributes)
    parts = []
    for number, part in enumerate(dataset.parts):
        stay = removal.rows.get(number)
        if stay is None:
            parts.append(part)
        elif len(stay):
            parts.append(_rewrite(url, spec, dataset.open_part(number), stay))
    _forget_items(dataset, removal)
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


def _find_rows(
    dataset: Dataset, kind: Kind, name: str
) -> tuple[dict[int, NDArray[np.int64]], tuple[str, ...]]:
    """Find the rows that stay of each part that changes, and the ids of what goes."""
    rows: dict[int, NDArray[np.int64]] = {}
    ids: list[str] = []
    for number, part in enumerate(dataset.parts):
        if not _has_groups(dataset):
            if _is_of(part, kind, name):
                rows[number] = np.empty(0, np.int64)
                ids.append(part.name)
        elif part.image_count:
            opened = dataset.open_part(number)
            goes = opened.column("group_id") == name
            if goes.any():
                rows[number] = np.flatnonzero(~goes)
                ids += opened.column("image_id")[goes].tolist()
    return rows, tuple(ids)


def _has_groups(dataset: Dataset) -> bool:
    """Whether each row has a patient or slide of its own, as in a dataset of images."""
    return "group_id" in dataset.attributes["columns"]


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


def _forget_items(dataset: Dataset, removal: Removal) -> None:
    """Take items out of the manifest, and out of the failures of the last ingest."""
    place = storage.join(dataset.url, MANIFEST)
    try:
        entries = read_manifest(place)
    except (AbsentError, ValueError, KeyError, TypeError):
        entries = ()
    progress: dict[str, Any] = dict(read_progress(dataset.url) or {})
    failures = [ManifestEntry(each["item"], "failed") for each in progress.get("failures", ())]
    gone = _find_items(dataset, removal, [*entries, *failures])
    if gone & {entry.item for entry in entries}:
        left = [_forget_remark(entry, gone) for entry in entries if entry.item not in gone]
        write_manifest(place, left, sealed_at=datetime.now(UTC))
    if gone & {entry.item for entry in failures}:
        progress["failures"] = [e for e in progress["failures"] if e["item"] not in gone]
        data = json.dumps(progress, indent=1, ensure_ascii=False)
        storage.write_bytes(storage.join(dataset.url, PROGRESS), f"{data}\n".encode())
    elif not progress:
        storage.delete(storage.join(dataset.url, PROGRESS))  # damaged: nobody reads whom it names


def _find_items(
    dataset: Dataset, removal: Removal, entries: Iterable[ManifestEntry]
) -> frozenset[str]:
    """Find the items of the manifest that are of the slides or images that go.

    An item is an id, as under privacy, or the URL of a file, which ends in the id; of a DICOM slide
    in the name of one of its files after it. A file of the same name in another folder stays.
    """
    left = _name_places(_name_left(dataset, removal))
    ids = _name_places(removal.item_ids) - left
    items = [(_name_item(entry), entry.item) for entry in entries]
    root = _find_root({name for name, _ in items}, left, ids)
    urls = ids if root is None else ids | {f"{root}/{each}" for each in ids}
    is_by_file = dataset.attributes["source"] == _NAMED_BY_FILE
    return frozenset(
        item
        for name, item in items
        if name in urls
        or name.rpartition("/")[0] in urls
        or (is_by_file and storage.name_of(name) in ids)
    )


def _name_item(entry: ManifestEntry) -> str:
    """Name the file or row that an entry is about; one about a cell names its column too."""
    is_of_cell = entry.reason.endswith(_UNKNOWN_CELL)
    return entry.item.rpartition(", ")[0] if is_of_cell else entry.item


def _name_left(dataset: Dataset, removal: Removal) -> Collection[str]:
    """Name slides that stay, all of them, or the images that stay of some part."""
    if not _has_groups(dataset):
        return [part.name for at, part in enumerate(dataset.parts) if at not in removal.rows]
    for number, part in enumerate(dataset.parts):
        stay = removal.rows.get(number)
        if part.image_count and (stay is None or len(stay)):
            ids = dataset.open_part(number).column("image_id")
            return set(ids.tolist() if stay is None else ids[stay].tolist())
    return ()


def _name_places(ids: Collection[str]) -> frozenset[str]:
    """Name the paths of slides or images below their source.

    Of several DICOM slides in one folder the files cannot be told apart: theirs is the folder.
    """
    split = [(each, *each.rpartition("/")[::2]) for each in ids]
    return frozenset(
        folder if folder and _SERIES.fullmatch(name) else each for each, folder, name in split
    )


def _find_root(names: Collection[str], left: frozenset[str], gone: frozenset[str]) -> str | None:
    """Find the source, of which the ids are paths: the folder that has most of what stays.

    Among equals it is the one with most items below it, then with most of what goes, then the
    upper one: a killed removal has already taken out what goes. None where no item is the URL of
    anything that stays.
    """
    stays, goes = Counter[str](), Counter[str]()
    for name in {*names, *(name.rpartition("/")[0] for name in names)}:
        segments = name.split("/")
        for at in range(1, len(segments)):
            path = "/".join(segments[at:])
            if path in left:
                stays["/".join(segments[:at])] += 1
            elif path in gone:
                goes["/".join(segments[:at])] += 1
    most = max(stays.values(), default=0)
    best = [root for root, count in stays.items() if count == most]
    below = {root: sum(name.startswith(f"{root}/") for name in names) for root in best}
    return max(best, key=lambda root: (below[root], goes[root], -len(root)), default=None)


def _forget_remark(entry: ManifestEntry, gone: frozenset[str]) -> ManifestEntry:
    """Drop a remark that names an item which goes, e.g. that both are of the same bytes."""
    names = (re.escape(item) for item in gone if item in entry.reason)
    is_named = any(re.search(rf"(?<![\w./-]){name}(?![\w/-]|\.\w)", entry.reason) for name in names)
    return replace(entry, reason="") if is_named else entry
