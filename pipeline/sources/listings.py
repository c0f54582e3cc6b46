"""What listing a folder or prefix of images gives, and what all such listings share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pipeline.records import ManifestEntry, SourceImage
from pipeline.storage import ObjectInfo, list_objects, parse

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
# A table of a hundred thousand rows may lie beside a few hundred images.
_NAMED: Final = 20


@dataclass(frozen=True)
class ImageListing:
    """The images of a source.

    Args:
        images: Those that can be tried, in order of `image_id`.
        rejected: What never became one: absent, without a row, refused, filtered out.
        notes: What the user should know of how the source was read, a line each.
    """

    images: tuple[SourceImage, ...]
    rejected: tuple[ManifestEntry, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """A folder, a prefix or a single file, and the files in it.

    Args:
        url: A plain absolute path or an `s3://` URL, without a final slash.
        files: In order of their URLs.
    """

    url: str
    files: tuple[ObjectInfo, ...]

    @property
    def is_single_file(self) -> bool:
        """Whether the URL names a file itself."""
        return len(self.files) == 1 and self.files[0].url == self.url


def list_folder(url: str) -> Folder:
    """List a folder, a prefix or a single file.

    Raises:
        StorageError: It cannot be read.
    """
    plain = plain_url(url)
    return Folder(plain, tuple(list_objects(plain)))


def plain_url(url: str) -> str:
    """A URL as an absolute path where it names a file; without a final slash."""
    place = parse(url)
    return place.key if place.scheme == "file" else url.rstrip("/")


def parent_of(url: str) -> str | None:
    """The folder that holds a file or folder; None for a bucket or the root of a disk."""
    return url.rpartition("/")[0] if parse(url).key.strip("/") else None


def relative_path(url: str, folder: str) -> str | None:
    """The path of a file below a folder, or None where it lies elsewhere."""
    below = folder.rstrip("/") + "/"
    return url[len(below) :] if url.startswith(below) else None


def is_image(url: str) -> bool:
    """Whether a file's name is that of an image."""
    path = PurePosixPath(url)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def name_some(items: Iterable[str], reason: str, *, table_url: str) -> tuple[ManifestEntry, ...]:
    """Skipped items: the first few by name, the others as one entry with their number.

    Args:
        items: Names of rows or files.
        reason: Why they are skipped.
        table_url: What the entry that counts is about.
    """
    names = list(items)
    entries = [ManifestEntry(name, "skipped", reason) for name in names[:_NAMED]]
    if more := len(names) - len(entries):
        entries.append(ManifestEntry(table_url, "skipped", f"{more} more rows: {reason}"))
    return tuple(entries)
