"""A folder or S3 prefix of images, with or without a table of labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SourceError
from pipeline.records import SPLITS, Label, ManifestEntry, Scalar, SourceImage, Split
from pipeline.sources.listings import (
    Folder,
    ImageListing,
    is_image,
    list_folder,
    name_some,
    parent_of,
    plain_url,
    relative_path,
)
from pipeline.sources.tables import Table, parse_age, parse_sex, read_table
from pipeline.storage import ObjectInfo, exists, join

# What tables call our columns. `score pcam/valid` finds `pcam/manifest.csv`.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group_id": ("group_id", "group", "patient_id", "patient", "slide_id", "slide"),
    "view_position": ("view_position", "view", "possible_views"),
    "age_years": ("age_years", "age", "patient_age"),
    "sex": ("sex", "gender", "patient_sex", "patient_gender"),
    "findings": ("findings", "finding", "finding_labels"),
}
_NEEDED: Final = ("path", "label")
_TABLE_NAMES: Final = ("manifest.csv", "labels.csv", "manifest.csv.gz", "labels.csv.gz")
_PARSERS: Final[Mapping[str, Callable[[str], Scalar]]] = {
    "view_position": str.upper,
    "age_years": parse_age,
    "sex": parse_sex,
    "findings": str,
}
_LABEL_WORDS: Final[Mapping[str, Label]] = {
    **dict.fromkeys(("0", "0.0", "normal", "negative", "healthy", "false"), Label.NORMAL),
    **dict.fromkeys(
        ("1", "1.0", "abnormal", "anomalous", "anomaly", "positive", "tumor", "tumour", "true"),
        Label.ANOMALOUS,
    ),
    **dict.fromkeys(("", "-1", "unknown"), Label.UNKNOWN),
}
# PatchCamelyon's copies name the labelled tumours for tuning `train_tumor_for_cv`.
_TUNING_WORDS: Final = frozenset({"tuning", "tune", "cv", "train_tumor_for_cv"})
_SPLIT_WORDS: Final[Mapping[str, Split]] = {
    **dict.fromkeys(("train", "training", "train_val"), "train"),
    **dict.fromkeys((*_TUNING_WORDS, "dev", "val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
NO_TABLE: Final = "none"


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
    or in its parent. Its paths are relative to its own folder where the images lie below that,
    else to `url`. Rows outside `url` are no part of the batch.

    A split `valid` is `validation`, or `test` where the table has a tuning split too. A split
    column that says `train` throughout divides nothing and is ignored.

    Args:
        url: A folder, an S3 prefix, or one image.
        labels_url: URL of the table (CSV, may be gzipped), or `none` to look for none.
        columns: Our name (`path`, `label`, `split`, `group_id`, `view_position`, `age_years`,
            `sex`, `findings`) -> the table's, where the usual names do not fit.
        split_map: The table's word -> split; outweighs the usual words.
        label_map: The table's word -> 0, 1 or -1; outweighs the usual words.
        keeps_unlisted: Whether images without a row are kept, their label unknown (scoring),
            or left out (training: they might belong to any patient).

    Raises:
        SourceError: There is no image, or the table cannot be used.
        StorageError: The URL cannot be read.
    """
    folder = list_folder(url)
    files = folder.files if folder.is_single_file else tuple(
        info for info in folder.files if is_image(info.url)
    )  # fmt: skip
    if not files:
        raise SourceError(
            url, f"no image among {len(folder.files)} files", "Images are PNG, JPEG or TIFF files"
        )
    found = labels_url or _find_table(folder)
    if not found or found == NO_TABLE:
        base = parent_of(folder.url) if folder.is_single_file else folder.url
        images = [_unlabelled(info, base or "") for info in files]
        return ImageListing(_ordered(images), (), ("no label table: labels are unknown",))
    table = _read_labels(found, columns or {})
    matching = _Matching(
        table,
        _base_of(table.url, folder),
        folder.url,
        {**_LABEL_WORDS, **{key.lower(): Label(value) for key, value in (label_map or {}).items()}},
        _split_words(table, split_map or {}),
    )
    listing = matching.match(folder, files, keeps_unlisted=keeps_unlisted)
    if not listing.images or (not matching.images and labels_url):
        first = matching.refused[0].reason if matching.refused else "no such image"
        raise SourceError(
            table.url,
            f"none of its {len(table.rows)} rows gives an image of {folder.url}; "
            f"{table.rows[0]['path']!r}: {first}",
            f"Give paths relative to the table's folder, or the table as `{NO_TABLE}`",
        )
    return listing


@dataclass
class _Matching:
    """Rows against files: every row and every file ends in exactly one place."""

    table: Table
    base: str
    root: str
    label_words: Mapping[str, Label]
    split_words: Mapping[str, Split | None]
    images: dict[str, SourceImage] = field(default_factory=dict)
    refused: list[ManifestEntry] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)

    def match(
        self, folder: Folder, files: Collection[ObjectInfo], *, keeps_unlisted: bool
    ) -> ImageListing:
        by_path = {relative_path(info.url, self.base): info for info in folder.files}
        for row in self.table.rows:
            self._match_row(row, by_path)
        unlisted = [info for info in files if relative_path(info.url, self.base) not in self.named]
        kept = [_unlabelled(info, self.base) for info in unlisted] if keeps_unlisted else []
        left_out = [] if keeps_unlisted else [
            ManifestEntry(info.url, "skipped", "no row in the label table") for info in unlisted
        ]  # fmt: skip
        absent = name_some(
            self.absent, "in the label table, but no such image", table_url=self.table.url
        )
        return ImageListing(
            _ordered([*self.images.values(), *kept]),
            (*self.refused, *absent, *left_out),
            self._notes(),
        )

    def _match_row(self, row: Mapping[str, str], by_path: Mapping[str | None, ObjectInfo]) -> None:
        path = _safe_path(row["path"])
        if path is None:
            self._refuse(row["path"], "the path leaves the table's folder")
            return
        if self.root != self.base and not _is_within(join(self.base, path), self.root):
            return
        if path not in by_path:
            self.absent.append(path)
            return
        image = self._make_image(row, path, by_path[path])
        if path in self.named and image is not None:
            self._settle_duplicate(path, image)
        elif image is not None:
            self.images[path] = image
        self.named.add(path)

    def _make_image(
        self, row: Mapping[str, str], path: str, info: ObjectInfo
    ) -> SourceImage | None:
        label = self.label_words.get(row["label"].lower())
        if label is None:
            self._refuse(path, f"unknown label {row['label']!r}: give its meaning in label_map")
            return None
        word = row.get("split", "").lower()
        if word and word not in self.split_words:
            self._refuse(path, f"unknown split {row['split']!r}: give its meaning in split_map")
            return None
        columns = {name: parse(row[name]) for name, parse in _PARSERS.items() if name in row}
        group = row.get("group_id") or path
        split = self.split_words.get(word)
        return SourceImage(path, group, info.url, info.version, label, split, columns)

    def _settle_duplicate(self, path: str, image: SourceImage) -> None:
        """A row that repeats another is dropped; one that contradicts it takes both away."""
        if self.images.get(path) == image:
            self.refused.append(ManifestEntry(path, "skipped", "duplicated row"))
        else:
            self.images.pop(path, None)
            self._refuse(path, "its rows contradict each other")

    def _refuse(self, item: str, reason: str) -> None:
        self.refused.append(ManifestEntry(item, "failed", reason))

    def _notes(self) -> tuple[str, ...]:
        notes = [f"labels from {self.table.url}"]
        if "group_id" not in self.table.columns:
            notes.append(
                "no patient or slide column: every image is a group of its own, so images of one "
                "patient may be in different splits"
            )
        if "split" in self.table.columns and not any(self.split_words.values()):
            notes.append("the split column says train throughout and is ignored")
        elif self.split_words.get("valid") == "test":
            notes.append("`valid` is taken as test, since there is a tuning split")
        return tuple(notes)


def _read_labels(url: str, columns: Mapping[str, str]) -> Table:
    unknown = set(columns) - set(_NAMES)
    if unknown:
        raise SourceError(
            url, f"no such column of ours: {', '.join(sorted(unknown))}",
            f"Map from {', '.join(_NAMES)}",
        )  # fmt: skip
    names = {**_NAMES, **{ours: (theirs,) for ours, theirs in columns.items()}}
    remedy = (
        "Name them "
        + " and ".join(f"`{name}`" for name in _NEEDED)
        + ", or say which columns they are with `columns`"
    )
    return read_table(url, names, needed={*_NEEDED, *columns}, remedy=remedy)


def _split_words(table: Table, split_map: Mapping[str, Split]) -> Mapping[str, Split | None]:
    """Word -> split for this table; always None where its split column divides nothing."""
    words = {row.get("split", "").lower() for row in table.rows}
    known = {**_SPLIT_WORDS}
    if words & _TUNING_WORDS:
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


def _base_of(table_url: str, folder: Folder) -> str:
    """The folder that a table's paths are relative to."""
    home = parent_of(plain_url(table_url)) or ""
    return home if _is_within(folder.url, home) else folder.url


def _is_within(url: str, folder: str) -> bool:
    return url == folder or relative_path(url, folder) is not None


def _safe_path(cell: str) -> str | None:
    """A relative path with plain slashes, or None for one that leads elsewhere."""
    cell = cell.replace("\\", "/")
    path = PurePosixPath(cell)
    if not cell or path.is_absolute() or ".." in path.parts or ":" in cell.split("/")[0]:
        return None
    return str(path)


def _unlabelled(info: ObjectInfo, base: str) -> SourceImage:
    path = relative_path(info.url, base) or info.url
    return SourceImage(path, path, info.url, info.version)


def _ordered(images: Collection[SourceImage]) -> tuple[SourceImage, ...]:
    return tuple(sorted(images, key=lambda image: image.image_id))
