"""Verifies a sealed dataset: every digest of every part, its table, and its fingerprint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AbsentError, NormscopeError, SchemaError, StorageError
from pipeline.ingest.manifest import read_manifest
from pipeline.ingest.parts import digest_columns, digest_image, recall_part
from pipeline.io import storage
from pipeline.records import Array, Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.layout import MANIFEST, list_foreign
from pipeline.store.part import (
    PARTS,
    OpenPart,
    Part,
    find_attributes,
    mark_damaged,
    name_objects,
    open_part,
    read_document,
)
from pipeline.store.sharding import REPAIR
from pipeline.store.spec import ROOT, recall_spec
from pipeline.store.table import compute_fingerprint

Severity: TypeAlias = Literal["damage", "remark"]
_RUN_AGAIN: Final = "Run the same ingest again"
# What the table says of a part and its own document does not: the dataset alone can tell.
_OF_TABLE: Final = ("group_id", "split", "source_version", "facts")
_BROKEN: Final = (NormscopeError, ValueError, KeyError, TypeError, RuntimeError, OSError)


@dataclass(frozen=True)
class Finding:
    """Something that is not as the dataset says.

    Args:
        item: URL of the object at fault.
        problem: Fault that was found.
        remedy: Action that mends it.
        severity: `damage`: content is lost or changed; `remark`: content is whole.
        part: Name of the part; empty where the finding is of the dataset as a whole.
    """

    item: str
    problem: str
    remedy: str
    severity: Severity = "damage"
    part: str = ""


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of a verification.

    Args:
        url: URL of the dataset.
        part_count: Parts that were verified.
        image_count: Images whose pixels were verified.
        read_bytes: Bytes of uncompressed pixels that were verified.
        findings: Everything that is not as the dataset says, in order of the parts.
        repaired: Names of the damaged parts that are marked for the next ingest to make.
        seconds: Wall time in seconds.
    """

    url: str
    part_count: int
    image_count: int
    read_bytes: int
    findings: tuple[Finding, ...]
    repaired: tuple[str, ...]
    seconds: float

    @property
    def damages(self) -> tuple[Finding, ...]:
        """The findings that are damage."""
        return tuple(each for each in self.findings if each.severity == "damage")


@dataclass(frozen=True)
class VerifyPart:
    """Verifies one part of a dataset. Picklable.

    Args:
        url: URL of the dataset.
        columns: Names of the columns that each part has.
        image_bytes: Size of an image in bytes, uncompressed.
    """

    url: str
    columns: tuple[str, ...]
    image_bytes: int

    def __call__(self, item: tuple[int, Part]) -> tuple[int, tuple[Finding, ...]]:
        """Verify a part; whatever its reading raises is damage.

        Raises:
            StorageError: The storage does not answer.
        """
        number, part = item
        place = storage.join(self.url, part.place)
        try:
            found = [*self._compare(place, part)]
        except StorageError as error:
            if not isinstance(error, AbsentError):
                raise
            found = [_damage(error.item, error.problem, part)]
        except _BROKEN as error:
            if isinstance(error, NormscopeError):
                found = [_damage(error.item, error.problem, part)]
            else:
                found = [_damage(place, f"cannot be read ({type(error).__name__})", part)]
        return number, tuple(found)

    def _compare(self, place: str, part: Part) -> Iterator[Finding]:
        if not part.place:
            return
        document = read_document(place)
        if find_attributes(document) is None:
            yield _damage(storage.join(place, ROOT), "the root document is gone or damaged", part)
            return
        yield from _compare_row(place, document["attributes"], part)
        yield from _compare_documents(place, document, part)
        opened = open_part(self.url, part)
        yield from _compare_objects(place, document, part)
        columns = {name: opened.column(name) for name in self.columns}
        if digest_columns(columns) != part.digest:
            yield _damage(place, "the columns are not those that were written", part)
        yield from _compare_pixels(place, opened, columns)


def verify_dataset(
    url: str, map_work: MapWork, *, repair: bool = False, on_progress: Progress = ignore_progress
) -> VerifyReport:
    """Verify every digest of a sealed dataset, part by part.

    Args:
        url: Path or URL of the dataset.
        map_work: Engine whose workers read the parts.
        repair: Whether to mark damaged parts, so that the next ingest makes exactly these again.
        on_progress: Called with images verified and in all.

    Raises:
        SchemaError: There is no sealed dataset of this schema.
        StorageError: The storage does not answer.
    """
    began, url = time.monotonic(), storage.plain_url(url)
    try:
        dataset = open_dataset(url)
    except SchemaError as error:
        if error.item == url:
            raise
        # Of the root document or the table of parts: nothing tells what the parts should be.
        damage = Finding(error.item, error.problem, error.remedy)
        return VerifyReport(url, 0, 0, 0, (damage,), (), time.monotonic() - began)
    found = [*_compare_table(dataset), *_verify_parts(dataset, map_work, on_progress)]
    found += _find_others(dataset)
    marked = _mark_damaged(dataset, found) if repair else ()
    if repair:
        found = [replace(e, remedy=_RUN_AGAIN) if e.part in marked else e for e in found]
    return VerifyReport(
        url=url,
        part_count=len(dataset.parts),
        image_count=dataset.image_count,
        read_bytes=dataset.image_count * recall_spec(dataset.attributes).image_bytes,
        findings=tuple(found),
        repaired=marked,
        seconds=time.monotonic() - began,
    )


def _mark_damaged(dataset: Dataset, found: Sequence[Finding]) -> tuple[str, ...]:
    """Mark damaged parts for the next ingest, and return their names.

    Where only pixels are damaged a part loses its key of work, and its images keep their place;
    else it loses its root document.
    """
    by_name = {part.name: part for part in dataset.parts}
    damaged: dict[str, list[str]] = {}
    for each in found:
        if each.part and each.severity == "damage":
            damaged.setdefault(each.part, []).append(each.item)
    for name, items in damaged.items():
        place = storage.join(dataset.url, by_name[name].place)
        image = storage.join(place, "image") + "/"
        mark_damaged(place, keeps_rows=all(f"{item}/".startswith(image) for item in items))
    return tuple(sorted(damaged))


def _verify_parts(dataset: Dataset, map_work: MapWork, on_progress: Progress) -> Iterator[Finding]:
    """Verify all parts on the workers; findings are in the order of the parts."""
    spec = recall_spec(dataset.attributes)
    verify = VerifyPart(dataset.url, tuple(spec.columns), spec.image_bytes)
    found: dict[int, tuple[Finding, ...]] = {}
    done = 0
    on_progress(0, dataset.image_count)
    for number, findings in map_work(verify, list(enumerate(dataset.parts))):
        found[number] = findings
        done += dataset.parts[number].image_count
        on_progress(done, dataset.image_count)
    for number in sorted(found):
        yield from found[number]


def _compare_table(dataset: Dataset) -> Iterator[Finding]:
    """Compare the root document with the table of parts, which was compared with its name."""
    url, attributes = dataset.url, dataset.attributes
    expected: dict[str, object] = {
        "fingerprint": compute_fingerprint(recall_spec(attributes), dataset.parts),
        "image_count": dataset.image_count,
        "unreadable_count": sum(part.unreadable_count for part in dataset.parts),
    }
    for name, value in expected.items():
        if attributes.get(name) != value:
            problem = f"says {name} {attributes.get(name)}, the parts give {value}"
            yield Finding(storage.join(url, ROOT), problem, _RUN_AGAIN)


def _find_others(dataset: Dataset) -> Iterator[Finding]:
    """Find what lies there and the dataset does not name, and what lies beside its parts."""
    url = dataset.url
    try:
        read_manifest(storage.join(url, MANIFEST))
    except (AbsentError, ValueError, KeyError, TypeError):
        place = storage.join(url, MANIFEST)
        yield Finding(place, "the manifest is gone or damaged", _RUN_AGAIN)
    for name in list_foreign(url):
        remedy = "Move it elsewhere, if it is yours"
        yield Finding(storage.join(url, name), "no ingest has written this", remedy, "remark")
    named = {part.place for part in dataset.parts}
    folder = storage.join(url, PARTS)
    files, folders = storage.list_folder(folder)
    for name in [*files, *(name for name in folders if f"{PARTS}/{name}" not in named)]:
        problem = "the dataset does not name it: an ingest is running, or was killed"
        remedy = f"{_RUN_AGAIN}: it uses or deletes this"
        yield Finding(storage.join(folder, name), problem, remedy, "remark")
    for part in dataset.parts:
        picture = str(part.facts.get("review", ""))
        if picture and not storage.exists(storage.join(url, picture)):
            problem, remedy = (
                "the review picture is gone",
                "It is drawn when its part is made again",
            )
            yield Finding(storage.join(url, picture), problem, remedy, "remark", part.name)


def _compare_row(place: str, attributes: Mapping[str, Any], part: Part) -> Iterator[Finding]:
    """Compare what the part says of itself with its row of the table."""
    own = recall_part(part.place, attributes)
    names = [name for name in Part.__dataclass_fields__ if name not in _OF_TABLE]
    differing = [name for name in names if getattr(own, name) != getattr(part, name)]
    differing += [name for name, value in own.facts.items() if part.facts.get(name) != value]
    if differing:
        problem = f"says another {differing[0]} than the dataset's table of parts"
        yield _damage(storage.join(place, ROOT), problem, part)


def _compare_documents(place: str, root: Mapping[str, Any], part: Part) -> Iterator[Finding]:
    """Compare the document of each array with the copy of it in the part's root document."""
    for name, node in root["consolidated_metadata"]["metadata"].items():
        url = storage.join(place, name)
        if read_document(url) != node:
            yield _damage(storage.join(url, ROOT), "the array's document is gone or damaged", part)


def _compare_objects(place: str, root: Mapping[str, Any], part: Part) -> Iterator[Finding]:
    """Compare the objects that are there with those that the arrays consist of."""
    nodes = root["consolidated_metadata"]["metadata"]
    expected = {ROOT, *(key for name, node in nodes.items() for key in name_objects(name, node))}
    there = {i.url[len(place) + 1 :]: i.size_bytes for i in storage.list_objects(f"{place}/")}
    for key in sorted(expected - there.keys()):
        yield _damage(storage.join(place, key), "is gone", part)
    for key in sorted(there.keys() - expected):
        remedy = "Move it elsewhere, if it is yours"
        url = storage.join(place, key)
        yield Finding(url, "no ingest has written this", remedy, "remark", part.name)
    stored = sum(size for key, size in there.items() if key in expected and key[:8] == "image/c/")
    if expected <= there.keys() and stored != part.stored_bytes:
        problem = f"the images take {stored} bytes, {part.stored_bytes} were written"
        yield _damage(storage.join(place, "image"), problem, part)


def _compare_pixels(
    place: str, opened: OpenPart, columns: Mapping[str, Array]
) -> Iterator[Finding]:
    """Compare the digest of every image with its column; unreadable ones must be zeros."""
    part, read = opened.part, opened.open_chunks()
    size = opened.chunk_images
    url = storage.join(place, "image")
    lost: list[int] = []
    for chunk in range(ceil(part.image_count / size)):
        rows = range(chunk * size, min((chunk + 1) * size, part.image_count))
        try:
            images = read(chunk)
        except (SchemaError, AbsentError, RuntimeError, ValueError) as error:
            problem = error.problem if isinstance(error, NormscopeError) else str(error)
            item = error.item if isinstance(error, NormscopeError) else url
            yield _damage(item, f"images {rows.start} to {rows.stop - 1}: {problem}", part)
            continue
        lost += [
            row for row, image in zip(rows, images, strict=True) if _differs(image, columns, row)
        ]
    if lost:
        problem = f"{len(lost)} of {part.image_count} images have other pixels, first row {lost[0]}"
        yield _damage(url, problem, part)


def _differs(image: NDArray[np.uint8], columns: Mapping[str, Array], row: int) -> bool:
    if not columns["readable"][row]:
        return bool(image.any())
    return bool(digest_image(image) != columns["pixel_digest"][row])


def _damage(item: str, problem: str, part: Part) -> Finding:
    return Finding(item, problem, REPAIR, "damage", part.name)
