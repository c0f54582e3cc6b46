"""A table of labels for DICOM radiographs. Nothing of it is quoted: any cell may name a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from posixpath import normpath
from typing import Final, TypeAlias
from unicodedata import normalize

from pipeline.errors import SourceError, StorageError
from pipeline.io.storage import plain_url
from pipeline.privacy.key import PseudonymKey
from pipeline.records import ImageListing, Label, ManifestEntry, SourceImage, Split
from pipeline.sources.listing import parent_of
from pipeline.sources.tables import SPLIT_WORDS, parse_label, read_table

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "uid": ("sop_instance_uid", "sopinstanceuid", "instance_uid", "uid"),
    "label": ("label", "class", "target"),
    "split": ("split",),
}
_REMEDY: Final = "Give a column `label`, and `path` (below the folder) or `sop_instance_uid`"
_GIVE: Final = (
    "Give each file's path below the folder, or its SOP Instance UID, and a label of 0 or 1"
)
_Meaning: TypeAlias = tuple[Label, Split | None]


def apply_labels(
    listing: ImageListing, table_url: str, folder_url: str, key: PseudonymKey
) -> ImageListing:
    """Give listed DICOM radiographs the labels, and splits if it has any, of a CSV table.

    Images without a row keep their label. Rows are called by their number.

    Args:
        listing: Listing that `sources.dicom` made.
        table_url: URL of the table: a label, and the file's path below the folder or its SOP
            Instance UID; `split` where there is one.
        folder_url: URL of the folder that was listed.
        key: Key that the pseudonyms are made with.

    Raises:
        SourceError: It is no such table, or labels none of the images.
        StorageError: It cannot be read.
    """
    table = read_table(table_url, _NAMES, needed=("label",), remedy=_REMEDY)
    if not {"path", "uid"} & table.columns.keys():
        raise SourceError(table_url, "no column that names the images", _REMEDY)
    images = {image.image_id: image for image in listing.images}
    folder = plain_url(folder_url)
    bases = [folder, parent_of(folder), parent_of(plain_url(table_url))]
    by_path = _Paths(listing.images, filter(None, bases))
    by_uid = {image.image_id.partition("-")[0]: image.image_id for image in listing.images}
    known: dict[str, _Meaning | None] = {}
    rejected = []
    for number, row in enumerate(table.rows, 1):
        image_id = by_path.find(row.get("path", "")) or (
            by_uid.get(key.map_uid(row["uid"])) if row.get("uid") else None
        )
        meaning = _read_meaning(row)
        if image_id is None:
            rejected.append(
                ManifestEntry(f"row-{number}", "skipped", "names no radiograph of the folder")
            )
        elif meaning is None:
            rejected.append(
                ManifestEntry(f"row-{number}", "failed", "unknown word for a label or split")
            )
        elif known.setdefault(image_id, meaning) != meaning:
            known[image_id] = None
            rejected.append(
                ManifestEntry(f"row-{number}", "failed", "contradicts another row of the image")
            )
    labelled = sum(meaning is not None for meaning in known.values())
    if not labelled:
        problem = f"none of its {len(table.rows)} rows labels a radiograph"
        raise SourceError(table_url, f"{problem}; {rejected[0].item}: {rejected[0].reason}", _GIVE)
    for image_id, said in known.items():
        if said is not None:
            images[image_id] = replace(images[image_id], label=said[0], split=said[1])
    note = f"the table labels {labelled} of {len(images)} images"
    rejected_all = (*listing.rejected, *rejected)
    return ImageListing(tuple(images.values()), rejected_all, (*listing.notes, note))


class _Paths:
    """Finds images by the path of their file, however a table spells it.

    Args:
        images: Images with plain URLs.
        bases: Plain URLs of the folders that paths may be relative to, in order of preference.
    """

    def __init__(self, images: Iterable[SourceImage], bases: Iterable[str]) -> None:
        self._bases = tuple(bases)
        self._alike: dict[str, dict[str, str]] = {}  # composed URL -> URL -> id of the image
        for image in images:
            self._alike.setdefault(normalize("NFC", image.url), {})[image.url] = image.image_id

    def find(self, cell: str) -> str | None:
        """Find the id of the image that a cell names; None where there is none, or are several.

        Args:
            cell: Path relative to one of the folders, or an absolute path or URL; slashes may be
                backslashes, and accents composed or not.
        """
        if not cell:
            return None
        for url in self._resolve(cell.replace("\\", "/")):
            alike = self._alike.get(normalize("NFC", url), {})
            if url in alike or len(alike) == 1:
                return alike.get(url) or next(iter(alike.values()))
        return None

    def _resolve(self, path: str) -> list[str]:
        if "://" not in path and not path.startswith("/"):
            return [f"{base}/{normpath(path)}" for base in self._bases]
        try:
            plain = plain_url(path)
        except StorageError:  # a scheme that is none of ours
            return []
        return [plain if "://" in plain else normpath(plain)]


def _read_meaning(row: Mapping[str, str]) -> _Meaning | None:
    label = parse_label(row["label"])
    word = row.get("split", "").lower()
    split = SPLIT_WORDS.get(word)
    return None if label is None or (word and split is None) else (label, split)
