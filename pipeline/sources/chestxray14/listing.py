"""NIH ChestX-ray14 as it is published.

Wang et al., CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC. Read, on disk or on S3:

    Data_Entry_2017.csv  or  Data_Entry_2017_v2020.csv      (may be gzipped)
    train_val_list.txt, test_list.txt                       (where present)
    BBox_List_2017.csv                                      (where present)
    images/00000001_000.png  or  images_001/images/00000001_000.png  or any other depth
    images_001.tar.gz ... images_012.tar.gz                 (or .tar; see `archives`)

The first table writes ages as `058Y` and ends its lines with a comma, that of 2020 writes `57`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.archives import is_archive, list_members
from pipeline.io.scratch import Scratch
from pipeline.io.storage import ObjectInfo, exists, join, name_of, plain_url, read_bytes
from pipeline.records import ImageListing, Label, ManifestEntry, Split
from pipeline.runtime.engines import MapWork, map_serially
from pipeline.sources.chestxray14.boxes import read_boxes
from pipeline.sources.chestxray14.table import COLUMNS, RadiographRows, Views, check_findings
from pipeline.sources.junk import is_junk
from pipeline.sources.listing import (
    Folder,
    ImageFile,
    find_beside,
    in_order,
    is_image,
    list_folder,
    list_unlisted,
    parent_of,
)
from pipeline.sources.tables import decode_text, read_table

# Of two tables side by side the later is taken: it corrected ages and views.
TABLE_NAMES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_BOXES: Final = "BBox_List_2017.csv"
_ARCHIVE_START: Final = "images"
_LISTS: Final[Mapping[str, Split]] = {"train_val_list.txt": "train", "test_list.txt": "test"}


def list_chestxray14(
    url: str,
    *,
    table_url: str | None = None,
    views: Views = "all",
    findings: Sequence[str] = (),
    experiment: Mapping[str, tuple[Label, Split]] | None = None,
    scratch: Scratch | None = None,
    map_work: MapWork = map_serially,
) -> ImageListing:
    """List the radiographs below a folder or prefix.

    Label: normal where the finding is `No Finding`, else anomalous. Group: the patient. Split:
    the official lists, found beside the images or the table. Columns: `view_position`,
    `age_years`, `sex`, `findings`, and `boxes_yxhw` where there is a list of boxes.

    RadiographRows without a file are counted, as many users have only a part of the dataset.

    Args:
        url: A folder or prefix with the images, at any depth below.
        table_url: URL of the `Data_Entry_2017` table; None looks below `url` and in its parent.
        views: View position to keep, or `all`.
        findings: Keep anomalous images that have one of these findings; empty keeps all.
        experiment: Image name -> label and split, from `experiments.read_experiment`; these then
            replace the table's labels and the official lists, and other images are left out.
        scratch: Local folder for unpacked archives; None for the default one.
        map_work: An engine of `pipeline.runtime.engines`; one archive an item.

    Raises:
        SettingsError: There is no such finding.
        SourceError: There is no image or table, the table is another one, or the lists overlap.
        StorageError: The URL cannot be read.
    """
    wanted = check_findings(findings)
    folder = list_folder(url)
    files, unusable = _name_files(folder, scratch, map_work)
    if not files:
        first = f"; {unusable[0].item!r}: {unusable[0].reason}" if unusable else ""
        raise SourceError(
            url,
            f"no image among {len(folder.files)} files{first}",
            "Put the archives images_0NN.tar.gz there, unpacked or not",
        )
    table = read_table(
        table_url or find_table(folder),
        COLUMNS,
        needed=("image", "findings", "patient", "view"),
        remedy="Give the official Data_Entry_2017 table as it was published",
    )
    lists = _read_lists(folder, table.url)
    boxes, not_boxes = _read_boxes(folder, table.url)
    rows = RadiographRows(files, boxes, lists, views, wanted, experiment)
    matched = rows.match(table.rows, table.url)
    if not matched.images:
        raise SourceError(
            table.url,
            f"none of its {len(table.rows)} rows gives one of {len(files)} images of {url!r}",
            "Check that table, images and filters belong together",
        )
    unlisted = list_unlisted(
        file.public_name for name, file in sorted(files.items()) if name not in matched.named
    )
    return ImageListing(
        in_order(matched.images.values()),
        (*matched.rejected, *matched.list_absent(), *unlisted, *unusable, *not_boxes),
        (
            f"{len(matched.images)} of {len(table.rows)} rows of {table.url!r} give an image",
            f"splits: {_name_origin(experiment, lists)}",
            *_note_boxes(boxes, matched.images),
        ),
    )


def _name_origin(experiment: object, lists: Mapping[str, Split]) -> str:
    if experiment is not None:
        return "the experiment's lists"
    return "official lists" if lists else "no official lists, so by patient"


def _read_boxes(folder: Folder, table_url: str) -> tuple[dict[str, str], tuple[ManifestEntry, ...]]:
    """The boxes of the list beside the images or the table; none where there is no list."""
    home = parent_of(plain_url(table_url))
    beside_table = [join(home, _BOXES + end) for end in ("", ".gz")] if home else []
    url = find_beside(folder, [_BOXES]) or next(filter(exists, beside_table), None)
    return read_boxes(url) if url else ({}, ())


def _note_boxes(boxes: Mapping[str, str], images: Mapping[str, object]) -> tuple[str, ...]:
    known = len(boxes.keys() & images.keys())
    return (f"{known} images have boxes of findings",) if boxes else ()


def _name_files(
    folder: Folder, scratch: Scratch | None, map_work: MapWork
) -> tuple[dict[str, ImageFile], list[ManifestEntry]]:
    """Images by file name, and what cannot be taken. What lies unpacked goes before archives."""
    files: dict[str, ImageFile] = {}
    unusable = list(folder.refused)
    for info in folder.files:
        if not is_image(info.url):
            continue
        file = ImageFile(info.url, info.version)
        first = files.setdefault(name_of(info.url), file)
        if first is not file:
            reason = f"{first.url!r} has the same name and is taken"
            unusable.append(ManifestEntry(info.url, "skipped", reason))
    archives = [info for info in folder.files if _holds_images(info, folder)]
    listed = map_work(partial(_list_archive, scratch=scratch), archives)
    for info, found in sorted(listed, key=lambda pair: pair[0].url):
        if isinstance(found, ManifestEntry):
            unusable.append(found)
            continue
        doubles = sum(files.setdefault(name_of(file.name), file) is not file for file in found)
        if doubles:
            reason = f"{doubles} of its {len(found)} images lie elsewhere too and are taken there"
            unusable.append(ManifestEntry(info.url, "skipped", reason))
    return files, unusable


def _holds_images(info: ObjectInfo, folder: Folder) -> bool:
    """Whether a file is an archive of images that does not lie unpacked beside itself."""
    name = name_of(info.url)
    if not (is_archive(info.url) and name.startswith(_ARCHIVE_START)):
        return False
    unpacked = info.url[: -len(name)] + name.partition(".")[0] + "/"
    return not any(other.url.startswith(unpacked) for other in folder.files)


def _list_archive(
    info: ObjectInfo, scratch: Scratch | None
) -> tuple[ObjectInfo, list[ImageFile] | ManifestEntry]:
    try:
        members = list_members(info, scratch)
    except SourceError as error:
        return info, ManifestEntry(info.url, "failed", f"{error.problem}. {error.remedy}")
    return info, [
        ImageFile(info.url, info.version, f"{info.url}/{member.name}", member.span_bytes)
        for member in members
        if is_image(member.name) and not is_junk(PurePosixPath(member.name))
    ]


def find_table(folder: Folder) -> str:
    """The official table below a folder or in its parent.

    Raises:
        SourceError: There is none.
    """
    found = find_beside(folder, TABLE_NAMES)
    if not found:
        raise SourceError(
            folder.url,
            f"no {' or '.join(TABLE_NAMES)}",
            "Put the official table there, or give its URL",
        )
    return found


def _read_lists(folder: Folder, table_url: str) -> dict[str, Split]:
    """The official split of each image that the lists name."""
    home = parent_of(plain_url(table_url))
    splits: dict[str, Split] = {}
    for name, split in _LISTS.items():
        urls = [info.url for info in folder.files if name_of(info.url) == name]
        if not urls and home and exists(join(home, name)):
            urls = [join(home, name)]
        for url in urls[:1]:
            names = set(decode_text(url, read_bytes(url)).split())
            if twice := sorted(names & set(splits)):
                raise SourceError(
                    url,
                    f"{len(twice)} images are in both lists, the first is {twice[0]!r}",
                    "Fetch the official lists again",
                )
            splits |= dict.fromkeys(names, split)
    return splits
