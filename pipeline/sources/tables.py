"""CSV tables: columns found by any of their usual names, and what words in their cells mean."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import pandas as pd

from pipeline.errors import SourceError
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

_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_CELL: Final = 131_072  # characters; a torn quote makes one cell of all lines up to the next


@dataclass(frozen=True)
class Table:
    """The rows of a table, with columns renamed to the names that we use.

    Args:
        url: URL of the file.
        columns: Our name -> the table's own, for the columns that it has; empty without a header.
        rows: One mapping per row, our name -> stripped cell; only the columns asked for.
    """

    url: str
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]

    def number_rows(self) -> enumerate[Mapping[str, str]]:
        """Pair each row with its number in the file, counted from 1 and without blank lines."""
        return enumerate(self.rows, 2 if self.columns else 1)


def read_table(
    url: str,
    names: Mapping[str, Collection[str]],
    *,
    needed: Collection[str],
    remedy: str,
    is_row: Callable[[Sequence[str]], bool] | None = None,
) -> Table:
    """Read a CSV table in UTF-8, gzipped or not.

    Args:
        url: URL of the file.
        names: Our name of a column -> what tables may call it, in order of preference; case,
            blanks and hyphens do not matter.
        needed: Names (ours) of the columns that the table must have.
        remedy: Remedy that the error about a missing column gives.
        is_row: Tells from the first line whether it is a row of a table without a header, whose
            columns are then `names` in their order. None: every table has a header.

    Raises:
        SourceError: The file is not a CSV table in UTF-8, has no rows, or lacks a needed column.
        StorageError: The file cannot be read.
    """
    cells = _read_cells(url)
    header = cells[0] if cells else []
    has_header = is_row is None or not is_row(header)
    found = _find_columns(header if has_header else list(names), names)
    missing = [name for name in needed if name not in found]
    if missing:
        # Quoted, as every cell is: a table without a header begins with persons.
        listed = ", ".join(map(repr, filter(None, header[:20]))) or "none"
        problem = f"no column for {' and '.join(missing)}; the table has: {listed}"
        raise SourceError(url, problem, remedy)
    lines = cells[1:] if has_header else cells
    rows = tuple({name: row[at].strip() for name, at in found.items()} for row in lines)
    if not rows:
        raise SourceError(url, "the table has no rows", "Give one row an image")
    return Table(url, {name: header[at] for name, at in found.items() if has_header}, rows)


def _read_cells(url: str) -> list[list[str]]:
    """Read the cells of every line that is not blank, as many as the first of them has.

    A short line is filled up with empty cells; cells beyond the first line's are dropped.
    """
    data = read_bytes(url)
    try:
        frame = pd.read_csv(
            BytesIO(data),
            header=None,
            usecols=lambda _: True,  # without it a line with more cells than the first is refused
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            compression="gzip" if data.startswith(_GZIP_MAGIC) else None,
        )
    except pd.errors.EmptyDataError:
        return []
    except pd.errors.ParserError as error:
        # "Error tokenizing data. C error: EOF inside string starting at row 2", counted from 0.
        said = re.sub(r"\d+$", lambda row: str(int(row[0]) + 1), str(error).rpartition(": ")[2])
        problem = f"not a CSV table ({said})"
        raise SourceError(url, problem, "Close every quote, and save as CSV") from error
    except UnicodeDecodeError as error:
        raise SourceError(url, "not text in UTF-8", "Save the table as CSV in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(url, f"damaged gzip ({error})", "Fetch the table again") from error
    cells: list[list[str]] = frame.to_numpy().tolist()
    for number, row in enumerate(cells, 1):
        if max(map(len, row)) > _MAX_CELL:
            problem = f"not a CSV table (row {number} has a cell of over {_MAX_CELL} characters)"
            raise SourceError(url, problem, "Close every quote, and save as CSV")
    return cells


def _find_columns(header: Collection[str], names: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Our name -> index of the first column that bears one of its names."""
    positions: dict[str, int] = {}
    for at, title in enumerate(header):
        positions.setdefault(_fold(title), at)
    found = {}
    for name, candidates in names.items():
        at_any = [positions[_fold(other)] for other in candidates if _fold(other) in positions]
        if at_any:
            found[name] = at_any[0]
    return found


def _fold(title: str) -> str:
    return re.sub(r"[\s_-]+", "_", title.strip().lower())


def parse_sex(text: str) -> str:
    """`M`, `F`, `O` (DICOM's words), or empty where unknown."""
    first = text.strip().upper()[:1]
    return first if first in {"M", "F", "O"} else ""
