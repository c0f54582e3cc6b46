"""A folder or S3 prefix of images, with or without a table of labels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from shlex import quote
from typing import Final
from unicodedata import normalize

from pipeline.dicom.header import parse_age
from pipeline.errors import SourceError, StorageError
from pipeline.io.storage import ObjectInfo, exists, join, plain_url
from pipeline.records import SPLITS, ImageListing, Label, ManifestEntry, Scalar, SourceImage, Split
from pipeline.sources.junk import count_unread
from pipeline.sources.listing import (
    Folder,
    TableMatch,
    in_order,
    is_image,
    list_folder,
    list_unlisted,
    parent_of,
    relative_path,
    split_unnameable,
)
from pipeline.sources.tables import (
    EMPTY_WORDS,
    IMAGE_COLUMNS,
    SPLIT_WORDS,
    TUNING_WORDS,
    Table,
    parse_label,
    parse_name,
    parse_sex,
    read_table,
)

_NEEDED: Final = ("path", "label")
# `score pcam/valid` finds `pcam/manifest.csv`.
_TABLE_NAMES: Final = ("manifest.csv", "labels.csv", "manifest.csv.gz", "labels.csv.gz")
_PARSERS: Final[Mapping[str, Callable[[str], Scalar]]] = {
    "view_position": str.upper,
    "age_years": parse_age,
    "sex": parse_sex,
    "findings": str,
    "site": parse_name,
    "scanner": parse_name,
}
NO_TABLE: Final = "none"
_DRIVE: Final = re.compile(r"[A-Za-z]:/")
_TO_INGEST: Final = "`ingest images` its meaning,"
_ALONE: Final = "a group of its own, so images of one patient may be in different splits"


def list_images(
    url: str,
    *,
    labels_url: str | None = None,
    columns: Mapping[str, str] | None = None,
    split_map: Mapping[str, Split] | None = None,
    label_map: Mapping[str, int] | None = None,
    keeps_unlisted: bool = False,
) -> ImageListing:
    """List the images below a folder or prefix, or one image.

    The table is `labels_url`, else `manifest.csv` or `labels.csv` (or `.csv.gz`) in the folder
    or in its parent; a sample sheet is such a table. Its paths are relative to its own folder
    where the images lie below that, else to `url`. Rows outside `url` are no part of the batch.

    A split `valid` is `validation`, or `test` where the table has a tuning split too. A split
    column that says `train` throughout divides nothing and is ignored.

    Args:
        url: A folder, an S3 prefix, or one image.
        labels_url: URL of the table (CSV, may be gzipped), or `none` to look for none.
        columns: Our name (`path`, `label`, `split`, `group_id`, `view_position`, `age_years`,
            `sex`, `findings`, `site`, `scanner`) -> the table's, where the usual names do not
            fit.
        split_map: The table's word -> split; outweighs the usual words.
        label_map: The table's word or number -> 0, 1 or -1; outweighs the usual words.
        keeps_unlisted: Whether images without a row are kept, their label unknown (scoring),
            or left out (training: they might belong to any patient).

    Raises:
        SourceError: There is no image, or the table cannot be used.
        StorageError: The URL cannot be read.
    """
    folder = list_folder(url)
    files = (
        folder.files
        if folder.is_single_file
        else tuple(info for info in folder.files if is_image(info.url))
    )
    files, unnameable = split_unnameable(files)
    if not files:
        first = f"; {unnameable[0].item!r}: {unnameable[0].reason}" if unnameable else ""
        problem = f"no image among {len(folder.files)} files{first}"
        raise SourceError(url, problem, "Images are PNG, JPEG or TIFF files")
    refused = (*folder.refused, *unnameable)
    found = labels_url or _find_table(folder)
    if not found or found == NO_TABLE:
        base = parent_of(folder.url) if folder.is_single_file else folder.url
        unlabelled = [_unlabelled(info, base or "") for info in files]
        rejected = (*refused, *_count_unread(folder))
        return ImageListing(in_order(unlabelled), rejected, ("no label table: labels are unknown",))
    table = _read_labels(found, columns or {})
    rows = _LabelRows(
        table,
        _base_of(table, folder),
        folder.url,
        {word: Label(value) for word, value in (label_map or {}).items()},
        _split_words(table, split_map or {}),
    )
    matched = rows.match(_NamedFiles(folder.files, rows.base))
    unlisted = [info for info in files if rows.name(info) not in matched.named]
    kept = [_unlabelled(info, rows.base) for info in unlisted if keeps_unlisted]
    images = in_order([*matched.images.values(), *kept])
    if not images or (not matched.images and labels_url):
        raise _match_nothing(table, matched, folder)
    left_out = () if keeps_unlisted else list_unlisted(info.url for info in unlisted)
    named = {info.url for info in folder.files if rows.name(info) in matched.named}
    unread = _count_unread(folder, {*named, plain_url(found)})
    rejected = (*refused, *matched.rejected, *matched.list_absent(), *left_out, *unread)
    return ImageListing(images, rejected, rows.explain())


def _count_unread(folder: Folder, read: Collection[str] = ()) -> tuple[ManifestEntry, ...]:
    """Count files that are neither an image nor among those that were read for another reason."""
    if folder.is_single_file:
        return ()
    urls = (info.url for info in folder.files if not is_image(info.url))
    return count_unread(url for url in urls if url not in read)


def _match_nothing(table: Table, matched: TableMatch, folder: Folder) -> SourceError:
    first = matched.rejected[0].reason if matched.rejected else "no such image"
    return SourceError(
        table.url,
        f"none of its {len(table.rows)} rows gives an image of {folder.url!r}; "
        f"{table.rows[0]['path']!r}: {first}",
        f"Give paths relative to the table's folder, or leave it out by `--labels {NO_TABLE}`",
    )


class _NamedFiles:
    """Files as a table may name them.

    Args:
        files: Files of the source.
        base: Folder that the table's paths are relative to.
    """

    def __init__(self, files: Iterable[ObjectInfo], base: str) -> None:
        self._exact = {relative_path(info.url, base) or "": info for info in files}
        self._alike: dict[str, list[ObjectInfo]] = {}
        for path, info in self._exact.items():
            self._alike.setdefault(normalize("NFC", path), []).append(info)

    def find(self, cell: str, path: str | None) -> ObjectInfo | None:
        """Find the file of a cell.

        Composed and decomposed letters are one (Unicode UAX 15), unless files differ by them.

        Args:
            cell: Cell of the table.
            path: Path below the base that the cell means; None for one that leads elsewhere.
        """
        for name in filter(None, (cell, path)):
            if name in self._exact:
                return self._exact[name]
        alike = self._alike.get(normalize("NFC", path or ""), [])
        return alike[0] if path and len(alike) == 1 else None


@dataclass(frozen=True)
class _LabelRows:
    """Meaning of a table's rows, given the folder and words.

    Args:
        table: Table of labels, with our column names.
        base: Folder that the table's paths are relative to.
        root: Folder or file that was asked for.
        label_words: Words -> label, beside the usual ones.
        split_words: Word -> split.
    """

    table: Table
    base: str
    root: str
    label_words: Mapping[str, Label]
    split_words: Mapping[str, Split | None]

    def name(self, info: ObjectInfo) -> str:
        """Name a file by its path as the table would give it."""
        return relative_path(info.url, self.base) or ""

    def match(self, files: _NamedFiles) -> TableMatch:
        """Match every row with its file."""
        matched = TableMatch(self.table.url)
        for row in self.table.rows:
            path = _safe_path(row["path"], self.base)
            found = files.find(row["path"], path)
            if found is not None:
                if _is_within(found.url, self.root):
                    self._add_row(matched, row, self.name(found), found)
            elif path is None:
                matched.refuse(row["path"], "the path leaves the table's folder")
            elif _is_within(join(self.base, path), self.root):
                matched.absent.append(path)
        return matched

    def _add_row(
        self, matched: TableMatch, row: Mapping[str, str], path: str, info: ObjectInfo
    ) -> None:
        label = parse_label(row["label"], self.label_words)
        word = row.get("split", "").lower()
        word = "" if word in EMPTY_WORDS else word
        if label is None:
            advice = f"--label-map {quote(row['label'] + '=1')}, or =0, or =-1"
            matched.refuse(path, f"unknown label {row['label']!r}: give {_TO_INGEST} {advice}")
            return
        if word and word not in self.split_words:
            advice = f"--split-map {quote(row['split'] + '=test')}, or =train, or =validation"
            matched.refuse(path, f"unknown split {row['split']!r}: give {_TO_INGEST} {advice}")
            return
        columns = {name: parse(row[name]) for name, parse in _PARSERS.items() if name in row}
        if columns.get("age_years") == -1 and row["age_years"]:
            matched.ignore_cell(path, self.table.columns["age_years"], row["age_years"])
        group = parse_name(row.get("group_id", "")) or path
        split = self.split_words.get(word)
        matched.add(path, SourceImage(path, group, info.url, info.version, label, split, columns))

    def explain(self) -> tuple[str, ...]:
        """What the user should know of how the table was read."""
        notes = [f"labels from {self.table.url!r}"]
        nameless = sum(not parse_name(row.get("group_id", "")) for row in self.table.rows)
        if "group_id" not in self.table.columns:
            notes.append(f"no patient or slide column: every image is {_ALONE}")
        elif nameless:
            count = f"{nameless} of {len(self.table.rows)} rows"
            notes.append(f"{count} name no patient or slide: each of their images is {_ALONE}")
        if "split" in self.table.columns and not any(self.split_words.values()):
            notes.append("the split column says train throughout and is ignored")
        elif self.split_words.get("valid") == "test":
            notes.append("`valid` is taken as test, since there is a tuning split")
        return tuple(notes)


def _read_labels(url: str, columns: Mapping[str, str]) -> Table:
    unknown = set(columns) - set(IMAGE_COLUMNS)
    if unknown:
        raise SourceError(
            url,
            f"no such column of ours: {', '.join(sorted(unknown))}",
            f"Map from {', '.join(IMAGE_COLUMNS)}",
        )
    names = {**IMAGE_COLUMNS, **{ours: (theirs,) for ours, theirs in columns.items()}}
    remedy = (
        "Name them "
        + " and ".join(f"`{name}`" for name in _NEEDED)
        + ", or say which columns they are, to `ingest images` as `--columns.label NAME`"
    )
    return read_table(url, names, needed={*_NEEDED, *columns}, remedy=remedy)


def _split_words(table: Table, split_map: Mapping[str, Split]) -> Mapping[str, Split | None]:
    """Word -> split for this table; always None where its split column divides nothing."""
    words = {row.get("split", "").lower() for row in table.rows}
    known = {**SPLIT_WORDS}
    if words & TUNING_WORDS:
        known["valid"] = "test"
    known |= {word.lower(): split for word, split in split_map.items()}
    wrong = sorted(set(known.values()) - set(SPLITS))
    if wrong:
        raise SourceError(
            table.url, f"split_map gives {wrong[0]!r}", f"Use one of {', '.join(SPLITS)}"
        )
    if "split" in table.columns and {known.get(word) for word in words} == {"train"}:
        return dict.fromkeys(words)
    return {**known}


def _find_table(folder: Folder) -> str | None:
    places = [folder.url, parent_of(folder.url)]
    candidates = [join(place, name) for place in places if place for name in _TABLE_NAMES]
    return next((table for table in candidates if exists(table)), None)


def _base_of(table: Table, folder: Folder) -> str:
    """The folder that a table's paths are relative to: its own or, if none fits that, the source.

    Of a single image the source is the image's folder.
    """
    home = parent_of(plain_url(table.url)) or ""
    source = (parent_of(folder.url) or "") if folder.is_single_file else folder.url
    if not _is_within(folder.url, home):
        return source
    fits = []
    for base in (home, source):
        files = _NamedFiles(folder.files, base)
        cells = (row["path"] for row in table.rows)
        fits.append(any(files.find(cell, _safe_path(cell, base)) for cell in cells))
    return source if fits == [False, True] else home


def _is_within(url: str, folder: str) -> bool:
    return url == folder or relative_path(url, folder) is not None


def _safe_path(cell: str, base: str) -> str | None:
    """A path below the base with plain slashes, or None for one that leads elsewhere."""
    path = cell.replace("\\", "/")
    if _DRIVE.match(path):
        return None
    if path.startswith("/") or "://" in path:
        try:
            plain = plain_url(path)
        except StorageError:  # a scheme that is none of ours
            return None
        path = relative_path(posixpath.normpath(plain) if "://" not in plain else plain, base) or ""
    if not path or ".." in PurePosixPath(path).parts:
        return None
    return str(PurePosixPath(path))


def _unlabelled(info: ObjectInfo, base: str) -> SourceImage:
    path = relative_path(info.url, base) or info.url
    return SourceImage(path, path, info.url, info.version)
