"""A part of a dataset: a sealed Zarr group with one writer, one commit and one key of work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import product
from sys import intern
from typing import Any, ClassVar, Final

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.errors import AbsentError, SchemaError
from pipeline.io import storage
from pipeline.records import Array, Scalar
from pipeline.store.sharding import REPAIR, ReadChunk, open_chunks
from pipeline.store.spec import MEASURES, ROOT, DatasetSpec, encode_part

PARTS: Final = "parts"
_NOT_COLUMNS: Final = frozenset({"image", MEASURES, "measure"})
_READABLE_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
)
_READABLE_LENGTH: Final = 80
_SHARED: Final = 40  # characters: words such as `jpeg`, no digests


@dataclass(frozen=True, slots=True)
class Part:
    """One row of a dataset's table of parts.

    Args:
        name: Name of the part: the slide's id, or the number of a part of images.
        place: Folder of the part below the dataset's URL; empty where there is no image.
        image_count: Number of rows, unreadable ones included.
        unreadable_count: Number of rows marked unreadable.
        normal_count: Number of readable rows that are labelled normal.
        anomalous_count: Number of readable rows that are labelled anomalous.
        key: Key of work; empty where a later run tries again.
        digest: BLAKE3 of the columns, which hold a digest of each image.
        source_version: Version of the source when it was listed: size and time, or ETag.
        source_digest: BLAKE3 of all bytes of the source; empty where rows have their own.
        stored_bytes: Size of the encoded images in bytes.
        group_id: Patient or slide of all rows; empty where rows have their own.
        split: Split of all rows; empty where rows have their own.
        facts: Further facts that hold for all rows, e.g. `mpp_y_um`, `decoder`.
    """

    name: str
    place: str
    image_count: int
    unreadable_count: int
    normal_count: int
    anomalous_count: int
    key: str
    digest: str
    source_version: str
    source_digest: str
    stored_bytes: int
    group_id: str = ""
    split: str = ""
    facts: Mapping[str, Scalar] = field(default_factory=dict, hash=False)


class SharedFacts(Mapping[str, Scalar]):
    """The facts of a part, whose names and short texts all parts share.

    Sent by workers, ten thousand parts would hold each of them ten thousand times, and a dictionary
    of thirty facts alone takes 2 KiB.

    Args:
        facts: Facts by name.
    """

    __slots__ = ("_places", "_values")
    _known: ClassVar[dict[tuple[str, ...], Mapping[str, int]]] = {}

    def __init__(self, facts: Mapping[str, Scalar]) -> None:
        names = tuple(facts)
        if names not in self._known:
            self._known[names] = {intern(name): place for place, name in enumerate(names)}
        self._places = self._known[names]
        self._values = tuple(
            intern(value) if isinstance(value, str) and len(value) < _SHARED else value
            for value in facts.values()
        )

    def __getitem__(self, name: str) -> Scalar:
        return self._values[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[SharedFacts], tuple[dict[str, Scalar]]]:
        return SharedFacts, (dict(self),)


def name_place(name: str, *key: str) -> str:
    """Name the folder of a part: another for another key.

    Args:
        name: Name of the part, of any characters.
        *key: Texts that tell what the part is made from.
    """
    return f"{PARTS}/{name_file(name, *key)}"


def choose_place(known: Part | None, name: str, *key: str) -> str:
    """Choose the folder of a part to make: never that of a part which the dataset still names.

    A part is made again from the same key where its file has changed but not its size and time,
    or where an earlier run left it to be tried again.

    Args:
        known: The part of that name in the dataset, if it is there.
        name: Name of the part.
        *key: Texts that tell what the part is made from.
    """
    place = name_place(name, *key)
    if known is not None and known.place == place:
        return name_place(name, *key, known.digest)
    return place


def is_there(url: str, part: Part) -> bool:
    """Whether a part of a dataset is still there and not marked as damaged.

    One without an image needs no folder. `mark_damaged` marks a part.
    """
    if not part.place:
        return True
    attributes = read_attributes(storage.join(url, part.place))
    return attributes is not None and attributes.get("key") == part.key


def mark_damaged(url: str, *, keeps_rows: bool) -> None:
    """Mark a part as damaged, so that the next ingest makes it again.

    Args:
        url: URL of the part.
        keeps_rows: Whether the part stays readable, as only pixels are damaged; it then loses its
            key of work. Otherwise it loses its root document.
    """
    place = storage.join(url, ROOT)
    root = read_document(url)
    if keeps_rows and root:
        root["attributes"]["key"] = ""
        storage.write_bytes(place, json.dumps(root, ensure_ascii=False).encode())
    else:
        storage.delete(place)


def name_file(name: str, *key: str) -> str:
    """Name a file or folder: readable, legal on every system, and another for another name.

    Args:
        name: Any text, e.g. a slide's id.
        *key: Further texts that the file belongs to.

    Examples:
        >>> name_file("normal/ä 1.tif")
        'normal___1.tif-387a0fe4f1cfabb4'
    """
    digest = sha256(json.dumps([name, *key]).encode()).hexdigest()[:16]
    readable = "".join(each if each in _READABLE_CHARACTERS else "_" for each in name)
    return f"{readable[-_READABLE_LENGTH:].lstrip('.')}-{digest}"


def write_part(
    url: str, spec: DatasetSpec, columns: Mapping[str, Array], attributes: Mapping[str, Any]
) -> None:
    """Write all objects of a part but its images, the root document last.

    Args:
        url: URL of the part.
        spec: Specification of the dataset.
        columns: Values of all columns, each (image, ...).
        attributes: Attributes of the part's group.
    """
    objects = encode_part(spec, columns, attributes)
    root = objects.pop(ROOT)
    with ThreadPoolExecutor(len(objects), thread_name_prefix="columns") as threads:
        list(
            threads.map(
                lambda item: storage.write_bytes(storage.join(url, item[0]), item[1]),
                objects.items(),
            )
        )
    storage.write_bytes(storage.join(url, ROOT), root)


def read_attributes(url: str) -> Mapping[str, Any] | None:
    """Read the attributes of a part; None where it is absent or unfinished."""
    return find_attributes(read_document(url))


def read_whole(url: str) -> Mapping[str, Any] | None:
    """Read the attributes of a part whose objects are all there; None where one is missing.

    A root document alone does not tell that of a part in no table: another ingest may have swept
    its folder, or written there and been killed, while it was made.
    """
    root = read_document(url)
    nodes = root.get("consolidated_metadata", {}).get("metadata", {})
    named = {key for name, node in nodes.items() for key in name_objects(name, node)}
    there = {info.url.removeprefix(f"{url}/") for info in storage.list_objects(f"{url}/")}
    return find_attributes(root) if nodes and named <= there else None


def read_document(url: str) -> dict[str, Any]:
    """Read a JSON document of Zarr; empty where it is absent or damaged.

    Args:
        url: URL of the group or array, below which the document lies.
    """
    try:
        document = json.loads(storage.read_bytes(storage.join(url, ROOT)))
    except (AbsentError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def find_attributes(root: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the attributes of a document of Zarr; None where it has none."""
    attributes = root.get("attributes")
    return attributes if isinstance(attributes, dict) else None


def name_objects(name: str, node: Mapping[str, Any]) -> Iterator[str]:
    """Name the objects of an array: its document, and its chunks or shards."""
    yield f"{name}/{ROOT}"
    sizes = node["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [-(-length // size) for length, size in zip(node["shape"], sizes, strict=True)]
    for place in product(*map(range, counts)):
        yield "/".join([name, "c", *map(str, place)])


def clear_part(url: str) -> None:
    """Delete a part, its root document first: nobody takes what is left for a whole part."""
    storage.delete(storage.join(url, ROOT))
    for info in storage.list_objects(f"{url}/"):
        storage.delete(info.url)


@dataclass(frozen=True)
class OpenPart:
    """An open part, for reading.

    Args:
        url: URL of the part, which `xarray.open_zarr` opens.
        part: Row of the table of parts.
        group: The open Zarr group.
    """

    url: str
    part: Part
    group: zarr.Group

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns that are stored in the part, sorted."""
        names = set(self.group.array_keys()) - _NOT_COLUMNS
        return tuple(sorted({*names, *self.measures}))

    @property
    def chunk_images(self) -> int:
        """Rows in a whole chunk; the last one may have fewer."""
        return int(self._array("image").chunks[0])

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """Names of the float32 columns, in their order in the shared array."""
        if "measure" not in self.group:
            return ()
        return tuple(str(name) for name in self._read("measure"))

    @cached_property
    def _shared(self) -> NDArray[np.float32]:
        """Values of the float32 columns (image, measure): one array has them all."""
        return self._read(MEASURES)

    def column(self, name: str) -> Array:
        """Read a stored column: (n,), or (n, 2) for a name in `_yx`; text as `object`.

        Raises:
            SchemaError: The part has no such column, or it is damaged.
        """
        if name not in _NOT_COLUMNS and name in self.group:
            values = self._read(name)
            return values.astype(object) if values.dtype.kind == "T" else values
        if name in self.measures:
            return self._shared[:, self.measures.index(name)]
        raise SchemaError(self.url, f"no column {name!r}", f"It has {', '.join(self.column_names)}")

    def read_images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read rows `start` to `stop` of the part as (n, H, W, C), by zarr-python.

        Unreadable ones are zeros, as are those of a shard that is gone; `open_chunks` refuses it.

        Raises:
            SchemaError: The images are damaged.
        """
        return self._read("image", slice(start, stop))

    def open_chunks(self) -> ReadChunk:
        """Open the part's chunks, past zarr-python where that is faster."""
        return open_chunks(storage.join(self.url, "image"), self._array("image"))

    def read_reasons(self) -> dict[int, str]:
        """Read why rows are unreadable, by row of the part."""
        pairs: Any = self.group.attrs.get("unreadable", [])
        return {int(row): str(reason) for row, reason in pairs}

    def _read(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        array = self._array(name)
        try:
            return np.asarray(array[rows])
        except (RuntimeError, ValueError) as error:  # what zarr-python's codecs raise
            problem = f"cannot be decoded ({error})"
            raise SchemaError(storage.join(self.url, name), problem, REPAIR) from error

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise SchemaError(self.url, f"it has no array {name!r}", REPAIR)
        return array


def open_part(dataset_url: str, part: Part) -> OpenPart:
    """Open a part of a dataset.

    Args:
        dataset_url: URL of the dataset.
        part: Row of its table of parts, with at least one image.

    Raises:
        SchemaError: The part is gone, or its root document is damaged.
    """
    url = storage.join(dataset_url, part.place)
    try:
        group = zarr.open_group(storage.open_zarr_store(url, read_only=True), mode="r")
    except (FileNotFoundError, AbsentError) as error:
        raise SchemaError(
            url,
            f"part {part.name!r} is gone, though the dataset's table lists it",
            "Open the dataset again if it has been ingested again meanwhile; else run the same "
            "ingest again: it makes what is missing",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SchemaError(
            url,
            f"the root document of part {part.name!r} is damaged",
            REPAIR,
        ) from error
    return OpenPart(url, part, group)
