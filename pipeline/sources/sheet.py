"""Sample sheets: one row per slide or image, with what its user knows of it.

    path,patient,split,label,mpp_um,mask,annotation,site,scanner
    a/1.svs,P7,train,normal,0.2526,masks/1.png,,Uppsala,GT450

All columns but `path` may be absent, and an empty cell says nothing. Tables of labels and of um/px
are narrow sheets, and an official layout gives such rows too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import StringIO
from typing import Any, Final

from pipeline.errors import SourceError
from pipeline.io.storage import plain_url
from pipeline.records import SPLITS, Label, Slide, SourceImage, Split
from pipeline.slides.resolution import require_possible_mpp
from pipeline.sources.listing import relative_path
from pipeline.sources.tables import (
    EMPTY_WORDS,
    LABEL_WORDS,
    SPLIT_WORDS,
    parse_label,
    parse_name,
    read_table,
)

SHEET_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "file", "filename", "file_name", "slide", "slide_id", "wsi"),
    "patient": ("patient", "patient_id", "case", "case_id"),
    "group": ("group", "group_id"),
    "split": ("split",),
    "label": ("label", "class"),
    "mpp_um": ("mpp_um", "mpp"),
    "mask": ("mask",),
    "annotation": ("annotation",),
    "site": ("site",),
    "scanner": ("scanner",),
    "view": ("view", "view_position"),
}
"""Columns of a sheet of slides -> what a table may call them."""

NONE: Final = "none"
"""In the columns `mask` and `annotation`: use none, not even one that lies beside the slide."""

_REMEDY: Final = "The first line names the columns: path, and any of " + ", ".join(
    name for name in SHEET_COLUMNS if name != "path"
)
_LEAST_POWER: Final = 20.0  # of objectives that scan slides; no slide is as coarse as 20 um/px
# What a spreadsheet writes where a formula or a link has failed.
_FAILED_CELL: Final = re.compile(r"#(N/A|REF!|NAME\?|VALUE!|DIV/0!|NULL!|NUM!|SPILL!)", re.I)
# An empty cell says nothing of a slide, and a table need not name the slides of unknown label.
_LABEL_WORDS: Final = {word: label for word, label in LABEL_WORDS.items() if word}


@dataclass(frozen=True, slots=True)
class SheetRow:
    """What one row of a table says of a slide; an empty string or None says nothing.

    Args:
        table_url: URL of the table.
        number: Number of the row in the file, as a spreadsheet counts.
        path: The slide's path as the table gives it.
        patient: Id of the patient, or of another group that splits do not divide.
        split: Split of the slide, and so of its patient.
        label: Label of the slide.
        mpp_um: Micrometres per level-0 pixel.
        mask: Path of the tissue mask as the table gives it, or `none`.
        annotation: Path of the lesions' outlines as the table gives it, or `none`.
        site: Hospital or laboratory that made the slide.
        scanner: Name of the scanner.
        view: View position, which a slide does not have.
    """

    table_url: str
    number: int
    path: str
    patient: str = ""
    split: Split | None = None
    label: Label | None = None
    mpp_um: float | None = None
    mask: str = ""
    annotation: str = ""
    site: str = ""
    scanner: str = ""
    view: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What the row says of the slide, by column."""
        names = [field.name for field in fields(self)[3:]]
        return {name: said for name in names if (said := getattr(self, name)) not in {"", None}}

    def refuse(self, problem: str, remedy: str) -> SourceError:
        """Make the error about a cell of this row."""
        return SourceError(self.table_url, f"{problem} in row {self.number}", remedy)


def read_sheet(url: str) -> tuple[SheetRow, ...]:
    """Read a sample sheet of slides.

    Words for labels and splits are those of `tables.LABEL_WORDS` and `tables.SPLIT_WORDS`, in
    upper or lower case. A cell `NA`, `N/A`, `NaN`, `null`, `-` or `?` is empty, and a patient,
    site or scanner `unknown` is too: slides of nobody are not all of one patient. A comma in
    `mpp_um` is a decimal comma.

    Args:
        url: URL of a CSV table with the column `path` and any other of `SHEET_COLUMNS`, gzipped
            or not.

    Raises:
        SourceError: The table cannot be used, has an unknown column, or a cell that means
            nothing. The first is named, and how many other rows have one.
        StorageError: The table cannot be read.
    """
    table = read_table(url, SHEET_COLUMNS, needed=("path",), remedy=_REMEDY, is_closed=True)
    rows, refused = [], []
    for number, cells in table.number_rows():
        try:
            rows.append(_parse_row(url, number, cells))
        except SourceError as error:
            refused.append(error)
    if refused:
        more = f"; {len(refused) - 1} more cannot be used" if len(refused) > 1 else ""
        raise SourceError(url, refused[0].problem + more, refused[0].remedy)
    return tuple(rows)


def read_labels(url: str) -> tuple[SheetRow, ...]:
    """Read a table of labels, with or without a header.

    Args:
        url: URL of a CSV table with the columns `slide` and `label` (a word of
            `tables.LABEL_WORDS`). Without a header these are its first two columns, as in
            Camelyon16's `reference.csv`.

    Raises:
        SourceError: The table cannot be used, or a label is empty or not a known word.
        StorageError: The table cannot be read.
    """
    table = read_table(
        url,
        {"slide": ("slide", "path"), "label": ("label",)},
        needed=("slide", "label"),
        remedy="Give a CSV table with the columns slide and label",
        is_row=lambda cells: len(cells) > 1 and _find_label(cells[1]) is not None,
    )
    rows = []
    for number, cells in table.number_rows():
        row = SheetRow(url, number, cells["slide"])
        rows.append(replace(row, label=_parse_label(row, cells["label"])))
    return tuple(rows)


def read_mpp(url: str) -> tuple[SheetRow, ...]:
    """Read a table of um per level-0 pixel.

    Args:
        url: URL of a CSV table with the columns `slide` and `mpp_um`.

    Raises:
        SourceError: The table cannot be used, or a value is impossible.
        StorageError: The table cannot be read.
    """
    table = read_table(
        url,
        {"slide": ("slide", "path"), "mpp_um": ("mpp_um",)},
        needed=("slide", "mpp_um"),
        remedy="Give a CSV table with the columns slide and mpp_um",
    )
    rows = []
    for number, cells in table.number_rows():
        row = SheetRow(url, number, cells["slide"])
        rows.append(replace(row, mpp_um=_parse_mpp(row, cells["mpp_um"])))
    return tuple(rows)


def merge_rows(rows: Iterable[SheetRow]) -> SheetRow:
    """Merge rows about one slide: of each column the first row that says something counts.

    Args:
        rows: Rows about one slide, the most important first; at least one.
    """
    first, *others = rows
    facts = first.facts
    for row in others:
        facts = {**row.facts, **facts}
    return replace(first, **facts)


def tabulate_slides(slides: Iterable[Slide], root: str) -> list[dict[str, str]]:
    """Make the rows of a sheet that says of slides what is known of them.

    Args:
        slides: Slides of a listing.
        root: URL of the source's folder, which annotations and masks are given below.

    Returns:
        Column -> cell for each slide; a column without a value is there, to be filled in.
    """
    return [
        {
            "path": slide.slide_id,
            "patient": slide.patient,
            "split": slide.split or "",
            "label": _word(slide.label),
            "mpp_um": "" if slide.mpp_um is None else str(slide.mpp_um),
            "mask": _below(slide.mask_url, root),
            "annotation": _below(slide.annotation_url, root),
            "site": slide.site,
            "scanner": slide.scanner,
        }
        for slide in slides
    ]


def tabulate_images(images: Iterable[SourceImage], root: str) -> list[dict[str, str]]:
    """Make the rows of a sheet of images, as `tabulate_slides` does of slides.

    Args:
        images: Images of a listing.
        root: URL of the source's folder, which paths are given below.
    """
    rows = []
    for image in images:
        others = {
            name: "" if value == -1 else str(value)  # -1 is an age that is not known
            for name, value in image.columns.items()
            if name not in {"site", "scanner", "view_position"}
        }
        known = {name: str(image.columns.get(name, "")) for name in ("site", "scanner")}
        row = {
            "path": _below(image.url, root),
            "patient": image.group_id if image.group_id != image.image_id else "",
            "split": image.split or "",
            "label": _word(image.label),
            **known,
            "view": str(image.columns.get("view_position", "")),
        }
        rows.append({**row, **others})
    return rows


def encode_sheet(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Encode rows as CSV that `read_sheet` and spreadsheets read.

    A path that a spreadsheet would take for a formula begins with `./`. Text that is not ASCII
    gets a byte order mark, without which spreadsheets misread it.

    Args:
        rows: Column -> cell for each row, of the same columns; at least one.
    """
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        paths = {name: row.get(name, "") for name in ("path", "mask", "annotation")}
        guarded = {name: f"./{path}" for name, path in paths.items() if path[:1] in set("=+-@")}
        writer.writerow({**row, **{name: path for name, path in guarded.items() if paths[name]}})
    whole = text.getvalue()
    return whole.encode("utf-8" if whole.isascii() else "utf-8-sig")


def _word(label: Label) -> str:
    return "" if label is Label.UNKNOWN else label.name.lower()


def _below(url: str | None, root: str) -> str:
    """Give a file's path below a folder, or its URL where it lies elsewhere."""
    if url is None:
        return ""
    plain = plain_url(url)
    return relative_path(plain, root) or plain


def _parse_row(url: str, number: int, cells: Mapping[str, str]) -> SheetRow:
    row = SheetRow(url, number, cells["path"])
    if not row.path:
        raise row.refuse("no path", "Give every row the path of a slide, or leave it out")
    for name, cell in cells.items():
        if _FAILED_CELL.fullmatch(cell):
            raise row.refuse(f"{name} {cell!r}", "Correct the formula, or leave the cell empty")
    said = {name: "" if cell.lower() in EMPTY_WORDS else cell for name, cell in cells.items()}
    names = ("patient", "group", "site", "scanner")
    whose = {name: parse_name(said.get(name, "")) for name in names}
    if whose["patient"] and whose["group"] not in {"", whose["patient"]}:
        problem = f"patient {whose['patient']!r} and group {whose['group']!r}"
        remedy = "A split divides neither, so give one of them: the one that holds the other"
        raise row.refuse(problem, remedy)
    label, split, mpp_um = (said.get(name, "") for name in ("label", "split", "mpp_um"))
    return replace(
        row,
        patient=whose["patient"] or whose["group"],
        split=_parse_split(row, split) if split else None,
        label=_parse_label(row, label) if label else None,
        mpp_um=_parse_mpp(row, mpp_um) if mpp_um else None,
        mask=said.get("mask", ""),
        annotation=said.get("annotation", ""),
        site=whose["site"],
        scanner=whose["scanner"],
        view=said.get("view", ""),
    )


def _parse_label(row: SheetRow, cell: str) -> Label:
    label = _find_label(cell)
    if label is None:
        raise row.refuse(f"label {cell!r}", f"Use one of {', '.join(sorted(_LABEL_WORDS))}")
    return label


def _find_label(cell: str) -> Label | None:
    return parse_label(cell) if cell else None


def _parse_split(row: SheetRow, cell: str) -> Split:
    split = SPLIT_WORDS.get(cell.lower())
    if split is None:
        remedy = f"Use one of {', '.join(SPLITS)}, or leave the cell empty"
        raise row.refuse(f"split {cell!r}", remedy)
    return split


def _parse_mpp(row: SheetRow, cell: str) -> float:
    try:
        mpp_um = float(cell if "." in cell else cell.replace(",", ".", 1))
        require_possible_mpp((mpp_um, mpp_um), "user table", row.path)
    except (ValueError, SourceError):
        mpp_um = _LEAST_POWER
    if mpp_um >= _LEAST_POWER:
        remedy = "Give micrometres per pixel of the slide's full size: a scan at 40x has about 0.25"
        raise row.refuse(f"mpp_um {cell!r} of {row.path!r}", remedy)
    return mpp_um
