"""Functions and records that the listings of all sources share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import AbsentError, StorageError
from pipeline.io.junk import is_junk
from pipeline.io.storage import (
    ObjectInfo,
    decode_file_url,
    exists,
    join,
    list_objects,
    name_of,
    parse,
    plain_url,
)
from pipeline.records import ManifestEntry, SourceImage

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff"})
# A table of a hundred thousand rows may lie beside a few hundred images.
_NAMED: Final = 20


@dataclass(frozen=True)
class Folder:
    """A folder, a prefix or a single file, and the files in it.

    Args:
        url: A plain absolute path or an `s3://` URL, without a final slash.
        files: Files at any depth below it, in order of their URLs.
        refused: Entries of the manifest on folders that cannot be read and keys that are no path.
    """

    url: str
    files: tuple[ObjectInfo, ...]
    refused: tuple[ManifestEntry, ...] = ()

    @property
    def is_single_file(self) -> bool:
        """Whether the URL names a file itself."""
        return len(self.files) == 1 and self.files[0].url == self.url


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that lies in a folder, or in an archive there.

    Args:
        url: URL of the file or of the archive.
        version: Version of that file or archive; changes when it does.
        name: Name in errors and manifests; empty where they show the URL.
        span_bytes: Start and stop of its bytes in the archive, unpacked.
    """

    url: str
    version: str
    name: str = ""
    span_bytes: tuple[int, int] | None = None

    @property
    def public_name(self) -> str:
        """What errors and manifests call it."""
        return self.name or self.url


@dataclass
class TableMatch:
    """Images matched with the rows of a table; every row ends in exactly one list.

    Args:
        table_url: URL of the table.
        images: Name -> image, for the rows that have one.
        rejected: Entries of the manifest about the other rows.
        absent: Names in the table that have no file.
        named: Names of every row that was used or refused.
    """

    table_url: str
    images: dict[str, SourceImage] = field(default_factory=dict)
    rejected: list[ManifestEntry] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)

    def add(self, name: str, image: SourceImage) -> None:
        """Add an image. A repeated row is skipped; contradicting rows are both refused."""
        if name not in self.named:
            self.images[name] = image
        elif self.images.get(name) == image:
            self.rejected.append(ManifestEntry(name, "skipped", "duplicated row"))
        else:
            self.images.pop(name, None)
            self.refuse(name, "its rows contradict each other")
        self.named.add(name)

    def refuse(self, name: str, reason: str) -> None:
        """Refuse a row."""
        self.rejected.append(ManifestEntry(name, "failed", reason))
        self.named.add(name)

    def ignore_cell(self, name: str, column: str, cell: str) -> None:
        """Report a cell that cannot be parsed; its row is used without it."""
        self.rejected.append(
            ManifestEntry(f"{name}, {column}", "skipped", f"{cell!r} is recorded as unknown")
        )

    def list_absent(self) -> tuple[ManifestEntry, ...]:
        """List rows without an image: the first few by name, the others as a count."""
        reason = "in the table, but no such image"
        entries = [ManifestEntry(name, "skipped", reason) for name in self.absent]
        return shorten(entries, self.table_url, reason)


def shorten(entries: Sequence[ManifestEntry], item: str, reason: str) -> tuple[ManifestEntry, ...]:
    """Keep the first few entries about rows of a table, and count the others in one.

    Args:
        entries: Entries of skipped rows.
        item: Item of the last entry: the table.
        reason: What the last entry says of the others.
    """
    more = len(entries) - _NAMED
    if more <= 0:
        return tuple(entries)
    return (*entries[:_NAMED], ManifestEntry(item, "skipped", f"{more} more rows: {reason}"))


def list_folder(url: str) -> Folder:
    """List a folder, a prefix or a single file, without systems' junk; raises as `list_source`."""
    plain = plain_url(url)
    files, refused = list_source(plain)
    kept = (info for info in files if not is_junk(PurePosixPath(info.url[len(plain) :])))
    return Folder(plain, tuple(kept), refused)


def list_source(url: str) -> tuple[list[ObjectInfo], tuple[ManifestEntry, ...]]:
    """List the files at a URL that a user has named as a source.

    Files of Zarr groups and arrays below it are left out, such as those of a dataset that an
    earlier ingest has written there.

    Returns:
        The files in order of their URLs, and entries of the manifest on folders below the URL that
        cannot be read, on links to nowhere and on keys of objects that are no path.

    Raises:
        AbsentError: There is no file.
        StorageError: The URL cannot be read.
    """
    url = decode_file_url(url)
    refusals: list[StorageError] = []
    if found := list_objects(url, refusals.append):
        zarrs = {parent_of(info.url) for info in found if name_of(info.url) == "zarr.json"}
        if zarrs:
            found = [info for info in found if zarrs.isdisjoint(_folders_of(info.url, url))]
        return found, tuple(_describe_refusals(refusals, url))
    if refusals:
        raise refusals[0]
    raise AbsentError(
        url, "no such folder or file, or nothing in it", "Check the spelling of the path or URL"
    )


def _describe_refusals(refusals: Iterable[StorageError], url: str) -> Iterator[ManifestEntry]:
    for error in refusals:
        below = relative_path(error.item, url) or error.item
        if not is_junk(PurePosixPath(below)):
            yield ManifestEntry(error.item, "failed", f"{error.problem}. {error.remedy}")


def _folders_of(found: str, url: str) -> Iterator[str]:
    """Yield every folder between the URL and a file."""
    folder = parent_of(found)
    while folder is not None and len(folder) > len(url.rstrip("/")):
        yield folder
        folder = parent_of(folder)


def parent_of(url: str) -> str | None:
    """The folder that holds a file or folder; None for a bucket or the root of a disk."""
    return url.rpartition("/")[0] if parse(url).key.strip("/") else None


def relative_path(url: str, folder: str) -> str | None:
    """The path of a file below a folder, or None where it lies elsewhere."""
    below = folder.rstrip("/") + "/"
    return url[len(below) :] if url.startswith(below) else None


def find_beside(folder: Folder, names: Sequence[str]) -> str | None:
    """Find a file below a folder, the nearest first, or in its parent.

    Args:
        folder: Folder to search, with its parent.
        names: File names in order of preference; each may also end in `.gz`.
    """
    nearest = sorted(folder.files, key=lambda info: info.url.count("/"))
    parent = parent_of(folder.url)
    for wanted in names:
        spellings = (wanted, f"{wanted}.gz")
        below = [info.url for info in nearest if name_of(info.url) in spellings]
        if below:
            return below[0]
    beside = (
        [join(parent, wanted + end) for wanted in names for end in ("", ".gz")] if parent else []
    )
    return next((url for url in beside if exists(url)), None)


def is_image(url: str) -> bool:
    """Whether a file's name is that of an image."""
    return PurePosixPath(url).suffix.lower() in IMAGE_SUFFIXES


def split_unnameable(
    files: Iterable[ObjectInfo],
) -> tuple[tuple[ObjectInfo, ...], tuple[ManifestEntry, ...]]:
    """Split files from those whose names are not text in UTF-8, which no dataset can hold.

    Args:
        files: Files of a listing. Python gives other bytes of a name as lone surrogates.

    Returns:
        The files that have names, and entries of the manifest on the others, in readable letters.
    """
    named, refused = [], []
    for info in files:
        readable = info.url.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if readable == info.url:
            named.append(info)
        else:
            reason = "the file's name is not text in UTF-8. Rename it"
            refused.append(ManifestEntry(readable, "failed", reason))
    return tuple(named), tuple(refused)


def in_order(images: Iterable[SourceImage]) -> tuple[SourceImage, ...]:
    """Sort images by their id."""
    return tuple(sorted(images, key=lambda image: image.image_id))


def list_unlisted(names: Iterable[str]) -> tuple[ManifestEntry, ...]:
    """List files that no row names."""
    return tuple(ManifestEntry(name, "skipped", "no row in the table") for name in names)
