"""CSV tables: columns found by any of their usual names, and what words in their cells mean."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from io import StringIO
from types import MappingProxyType
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.stand_ins import require_content
from pipeline.io.storage import read_bytes
from pipeline.records import Label, Split

IMAGE_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group_id": ("group_id", "group", "patient_id", "patient", "slide_id", "slide"),
    "view_position": ("view_position", "view", "possible_views"),
    "age_years": ("age_years", "age", "patient_age"),
    "sex": ("sex", "gender", "patient_sex", "patient_gender"),
    "findings": ("findings", "finding", "finding_labels"),
    "site": ("site",),
    "scanner": ("scanner",),
}
"""Our columns of tables of images -> what the tables call them, in order of preference."""
LABEL_WORDS: Final[Mapping[str, Label]] = {
    **dict.fromkeys(("0", "0.0", "normal", "negative", "healthy", "false"), Label.NORMAL),
    **dict.fromkeys(
        ("1", "1.0", "abnormal", "anomalous", "anomaly", "positive", "tumor", "tumour", "true"),
        Label.ANOMALOUS,
    ),
    **dict.fromkeys(("", "-1", "unknown"), Label.UNKNOWN),
}
"""Words for a label, of slides, images and radiographs alike; case does not matter."""

# PatchCamelyon's copies name the labelled tumours for tuning `train_tumor_for_cv`.
TUNING_WORDS: Final = frozenset({"tuning", "tune", "cv", "train_tumor_for_cv"})
SPLIT_WORDS: Final[Mapping[str, Split]] = {
    **dict.fromkeys(("train", "training", "train_val"), "train"),
    **dict.fromkeys((*TUNING_WORDS, "dev", "val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
"""Words for a split; case does not matter."""

EMPTY_WORDS: Final = frozenset({"na", "n/a", "nan", "null", "-", "?"})
"""What programs write into cells without a value; case does not matter."""
_NOBODY: Final = frozenset({"unknown", "anonymous", "anon", "none"})
_GZIP_MAGIC: Final = b"\x1f\x8b"
_NEAR: Final = 0.75  # similarity from which on a name may be a misspelt one
_ZIP_MAGIC: Final = b"PK\x03\x04"
_DELIMITERS: Final = ",;\t|"
_HINT: Final = re.compile(r"sep=(.)\s*", re.I)  # Excel's first line, which names the separator
# Blanks of any width, of none, and marks of byte order or of the direction of writing.
_INVISIBLE: Final = r"[\s\ufeff\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069]+"
_EDGES: Final = re.compile(rf"^{_INVISIBLE}|{_INVISIBLE}$")
_SAVE_REMEDY: Final = "Save the table as CSV in UTF-8"
_Line = tuple[int, list[str]]  # number in the file, cells


@dataclass(frozen=True)
class Table:
    """The rows of a table, with columns renamed to the names that we use.

    Args:
        url: URL of the file.
        columns: Our name -> the table's own, for the columns that it has; empty without a header.
        rows: One mapping per row, our name -> stripped cell; only the columns asked for.
        numbers: Number of each row in the file, as a spreadsheet counts: the first line is 1.
    """

    url: str
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]
    numbers: tuple[int, ...]

    def number_rows(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Pair each row with its number in the file."""
        return zip(self.numbers, self.rows, strict=True)


def read_table(
    url: str,
    names: Mapping[str, Collection[str]],
    *,
    needed: Collection[str],
    remedy: str,
    is_row: Callable[[Sequence[str]], bool] | None = None,
    is_closed: bool = False,
) -> Table:
    """Read a CSV table in UTF-8, gzipped or not.

    Cells are separated by commas, semicolons, tabs or vertical bars, whichever makes most columns
    of known names of the first line. Blanks and invisible marks around a cell are no part of it.
    A column of empty cells counts as absent. Cells are text: a formula is not evaluated.

    Args:
        url: URL of the file.
        names: Our name of a column -> what tables may call it, in order of preference; case,
            blanks and hyphens do not matter.
        needed: Names (ours) of the columns that the table must have.
        remedy: Remedy that the error about a missing or unknown column gives.
        is_row: Tells from the first line whether it is a row of a table without a header, whose
            columns are then `names` in their order. None: every table has a header.
        is_closed: Whether to refuse what would be left out: columns of other names, two columns
            of one meaning, cells beyond the header's.

    Raises:
        SourceError: The file is not a CSV table in UTF-8, has no rows, lacks a needed column, or
            has two of one name that contradict each other.
        StorageError: The file cannot be read.
    """
    lines = _read_lines(url, names)
    header = lines[0][1] if lines else []
    has_header = is_row is None or not is_row(header)
    titles = header if has_header else list(names)
    body = [line for line in (lines[1:] if has_header else lines) if any(line[1])]
    if is_closed:
        _require_closed(url, titles, body, names, remedy)
    found = _find_columns(url, titles, names, body)
    missing = [name for name in needed if name not in found]
    if missing:
        # Quoted, as every cell is: a table without a header begins with persons.
        listed = ", ".join(map(repr, filter(None, header[:20]))) or "none"
        problem = f"no column for {' and '.join(missing)}; the table has: {listed}"
        raise SourceError(url, problem, remedy)
    if not body:
        raise SourceError(url, "the table has no rows", "Give one row an image")
    filled = {at for _, row in body for at, cell in enumerate(row) if cell}
    used = {name: at for name, at in found.items() if at in filled or name in needed}
    rows = ({name: _cell(row, at) for name, at in used.items()} for _, row in body)
    return Table(
        url,
        {name: header[at] for name, at in used.items() if has_header},
        tuple(rows),
        tuple(number for number, _ in body),
    )


def _read_lines(url: str, names: Mapping[str, Collection[str]]) -> list[_Line]:
    """Read the cells of every line that is not blank, without what is invisible around them."""
    text = decode_text(url, read_bytes(url))
    lines: list[_Line] = []
    number, line = 0, 1
    try:
        delimiter, is_hint = _find_delimiter(re.split("[\r\n]", text, maxsplit=1)[0], names)
        reader = csv.reader(
            StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
        )
        for number, row in enumerate(reader, 1):
            line = reader.line_num + 1
            if row and not (is_hint and number == 1):
                lines.append((number, [_EDGES.sub("", cell) for cell in row]))
    except csv.Error as error:
        said = str(error)
        if said == "unexpected end of data":
            said = "the quotation mark there is never closed"
        where = f"in row {number + 1}" + (f", line {line}" if line != number + 1 else "")
        problem = f"not a CSV table ({said}, {where})"
        raise SourceError(url, problem, "Close every quote, and save as CSV") from error
    return lines


def _find_delimiter(first: str, names: Mapping[str, Collection[str]]) -> tuple[str, bool]:
    """Find what separates cells from the first line, and whether that line says nothing else."""
    if hint := _HINT.fullmatch(first):
        return hint[1], True
    known = {fold_title(other) for others in names.values() for other in others}
    unquoted = re.sub('"[^"]*"', "", first)

    def rank(mark: str) -> tuple[int, bool]:
        cells = next(csv.reader([first], delimiter=mark, skipinitialspace=True), [])
        return len({fold_title(cell) for cell in cells} & known), mark in unquoted

    return max(_DELIMITERS, key=rank), False


def decode_text(url: str, data: bytes) -> str:
    """Decode a text file in UTF-8, gzipped or not, without its byte order mark.

    Args:
        url: URL of the file, for errors.
        data: Bytes of the file.

    Raises:
        SourceError: It is none, or stands in the place of a file that was not fetched.
    """
    require_content(data, url)
    try:
        plain = gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(url, f"damaged gzip ({error})", "Fetch the table again") from error
    if plain.startswith(_ZIP_MAGIC):
        raise SourceError(url, "a workbook or another zip archive", _SAVE_REMEDY)
    try:
        text = plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = plain.count(b"\n", 0, error.start) + 1
        found = plain[error.start : error.start + 1].hex()
        problem = f"not text in UTF-8 (byte {found} in line {line})"
        raise SourceError(url, problem, _SAVE_REMEDY) from error
    if "\0" in text:  # as in UTF-16 without its mark
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SourceError(url, f"not text in UTF-8 (byte 00 in line {line})", _SAVE_REMEDY)
    return text


def _find_columns(
    url: str,
    titles: Sequence[str],
    names: Mapping[str, Collection[str]],
    lines: Collection[_Line],
) -> dict[str, int]:
    """Our name -> index of the first column of one of its names, if possible one with content."""
    positions: dict[str, list[int]] = {}
    for at, title in enumerate(titles):
        positions.setdefault(fold_title(title), []).append(at)
    found = {}
    for name, candidates in names.items():
        places = [at for other in candidates for at in positions.get(fold_title(other), ())]
        if places:
            filled = (at for at in places if any(_cell(row, at) for _, row in lines))
            found[name] = next(filled, places[0])
            title = titles[found[name]]
            _require_agreement(url, title, positions[fold_title(title)], lines)
    return found


def _require_agreement(
    url: str, title: str, places: Collection[int], lines: Collection[_Line]
) -> None:
    """Refuse columns of one name that say different things."""
    for number, row in lines:
        if len({_cell(row, at) for at in places} - {""}) > 1:
            problem = f"{len(places)} columns are called {title!r}, and differ in row {number}"
            raise SourceError(url, problem, "Leave the one that is right")


def _cell(row: Sequence[str], at: int) -> str:
    return row[at] if at < len(row) else ""


def _require_closed(
    url: str,
    titles: Sequence[str],
    lines: Collection[_Line],
    names: Mapping[str, Collection[str]],
    remedy: str,
) -> None:
    """Refuse a table of which something would be left out."""
    meaning = {fold_title(other): name for name, others in names.items() for other in others}
    seen: dict[str, str] = {}
    for title in titles:
        name = meaning.get(fold_title(title))
        if name is None and title:
            near = get_close_matches(fold_title(title), meaning, 1, _NEAR)
            hint = f"; the nearest known one is `{meaning[near[0]]}`" if near else ""
            raise SourceError(url, f"unknown column {title!r}{hint}", remedy)
        if name in seen:
            problem = f"the columns {seen[name]!r} and {title!r} mean the same"
            raise SourceError(url, problem, "Leave the one that is right")
        if name:
            seen[name] = title
    for number, row in lines:
        beyond = [cell for at, cell in enumerate(row) if cell and not "".join(titles[at : at + 1])]
        if beyond:
            problem = f"row {number} has the cell {beyond[0]!r} in a column without a name"
            raise SourceError(url, problem, "Name the column, or quote cells that hold a comma")


def fold_title(title: str) -> str:
    """Fold a title or word: case of letters, and blanks, hyphens or underscores, do not matter.

    Examples:
        >>> fold_title(" Pleural-thickening")
        'pleural_thickening'
    """
    return re.sub(r"[\s_-]+", "_", title.strip().lower())


def parse_label(cell: str, given: Mapping[str, Label] = MappingProxyType({})) -> Label | None:
    """Return the label that a cell means; None for a word that is not known.

    Numbers may be written as any program writes them: `1.0`, `1,00` and `+1` are 1.

    Args:
        cell: Cell of a table.
        given: Further words -> label; they outweigh `LABEL_WORDS`.
    """
    word = _fold_number(cell.lower())
    for other, label in given.items():
        if _fold_number(other.lower()) == word:
            return label
    return Label.UNKNOWN if word in EMPTY_WORDS else _USUAL_LABELS.get(word)


@lru_cache(maxsize=1024)
def _fold_number(word: str) -> str:
    try:
        return str(float(word.replace(",", ".")) + 0.0)  # which makes -0 0
    except ValueError:
        return word


_USUAL_LABELS: Final = {_fold_number(word): label for word, label in LABEL_WORDS.items()}


def parse_name(cell: str) -> str:
    """Return the name of a patient, site or scanner; empty where the cell says it is unknown."""
    return "" if cell.lower() in EMPTY_WORDS | _NOBODY else cell


def parse_sex(text: str) -> str:
    """`M`, `F`, `O` (DICOM's words), or empty where unknown."""
    first = text.strip().upper()[:1]
    return first if first in {"M", "F", "O"} else ""
