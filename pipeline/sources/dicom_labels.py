"""A table of labels for DICOM radiographs. Nothing of it is quoted: any cell may name a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeAlias

from pipeline.errors import SourceError
from pipeline.io.storage import plain_url
from pipeline.privacy.key import PseudonymKey
from pipeline.records import ImageListing, Label, ManifestEntry, Split
from pipeline.sources.listing import relative_path
from pipeline.sources.tables import LABEL_WORDS, SPLIT_WORDS, read_table

_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "uid": ("sop_instance_uid", "sopinstanceuid", "instance_uid", "uid"),
    "label": ("label", "class", "target"),
    "split": ("split",),
}
_REMEDY: Final = "Give a column `label`, and `path` (below the folder) or `sop_instance_uid`"
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
        SourceError: It is no such table.
        StorageError: It cannot be read.
    """
    table = read_table(table_url, _NAMES, needed=("label",), remedy=_REMEDY)
    if not {"path", "uid"} & table.columns.keys():
        raise SourceError(table_url, "no column that names the images", _REMEDY)
    folder = plain_url(folder_url)
    images = {image.image_id: image for image in listing.images}
    by_path = {relative_path(image.url, folder): image.image_id for image in listing.images}
    by_uid = {image.image_id.partition("-")[0]: image.image_id for image in listing.images}
    known: dict[str, _Meaning | None] = {}
    rejected = []
    for number, row in enumerate(table.rows, 1):
        image_id = by_path.get(row.get("path", "").replace("\\", "/")) or (
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
    for image_id, said in known.items():
        if said is not None:
            images[image_id] = replace(images[image_id], label=said[0], split=said[1])
    labelled = sum(meaning is not None for meaning in known.values())
    note = f"the table labels {labelled} of {len(images)} images"
    rejected_all = (*listing.rejected, *rejected)
    return ImageListing(tuple(images.values()), rejected_all, (*listing.notes, note))


def _read_meaning(row: Mapping[str, str]) -> _Meaning | None:
    label = LABEL_WORDS.get(row["label"].lower())
    word = row.get("split", "").lower()
    split = SPLIT_WORDS.get(word)
    return None if label is None or (word and split is None) else (label, split)
