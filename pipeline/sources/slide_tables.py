"""What tables say of slides: labels, um/px that a file lacks, errata of an archive."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Generic, Literal, TypeAlias, TypeVar, get_args

from pipeline.errors import SettingsError, SourceError
from pipeline.records import Label
from pipeline.slides.resolution import require_possible_mpp
from pipeline.sources.tables import LABEL_WORDS, read_table

ErratumState: TypeAlias = Literal["excluded", "partly_annotated"]
NO_ERRATA: Final = "none"
_STATES: Final = get_args(ErratumState)
# An empty cell says nothing of a slide, and a table need not name the slides of unknown label.
_LABEL_WORDS: Final = {word: label for word, label in LABEL_WORDS.items() if word}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """What a table says of one slide.

    Args:
        table: URL of the table.
        slide: The slide's name or path, as it stands there.
        cell: The value, as it stands there.
        value: The value.
    """

    table: str
    slide: str
    cell: str
    value: T


@dataclass(frozen=True, slots=True)
class Erratum:
    """What is wrong with a published slide.

    Args:
        state: `excluded`, or `partly_annotated`: where no lesion is outlined there may be one.
        reason: Why.
        source: Who says so.
    """

    state: ErratumState
    reason: str
    source: str


def read_errata(url: str | None = None) -> dict[str, Erratum]:
    """Read the errata of Camelyon16, by slide name in lower case.

    Args:
        url: CSV table with the columns `slide`, `state`, `reason` and `source`; None for the one
            that comes with the package (`pipeline/data/camelyon16_errata.csv`), `none` for none.

    Raises:
        SourceError: The table cannot be used.
        StorageError: It cannot be read.
    """
    if url == NO_ERRATA:
        return {}
    url = url or str(files("pipeline").joinpath("data", "camelyon16_errata.csv"))
    columns = ("slide", "state", "reason", "source")
    table = read_table(
        url,
        {name: (name,) for name in columns},
        needed=columns,
        remedy=f"Give a CSV table with the columns {', '.join(columns)}, or `{NO_ERRATA}`",
    )
    errata: dict[str, Erratum] = {}
    for row in table.rows:
        state = next((known for known in _STATES if known == row["state"]), None)
        if state is None:
            raise SourceError(
                url, f"state {row['state']!r} of {row['slide']}", f"Use {' or '.join(_STATES)}"
            )
        erratum = Erratum(state, row["reason"], row["source"])
        if errata.setdefault(row["slide"].lower(), erratum).state != state:
            problem = f"{row['slide']} is {' in one row and '.join(_STATES)} in another"
            raise SettingsError(url, problem, "Leave the row that is right")
    return errata


def read_labels(url: str) -> tuple[Row[Label], ...]:
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
        {"slide": ("slide",), "label": ("label",)},
        needed=("slide", "label"),
        remedy="Give a CSV table with the columns slide and label",
        is_row=lambda cells: len(cells) > 1 and cells[1].strip().lower() in _LABEL_WORDS,
    )
    labels = []
    for number, row in table.number_rows():
        word = row["label"].lower()
        if word not in _LABEL_WORDS:
            remedy = f"Use one of {', '.join(sorted(_LABEL_WORDS))}"
            raise SourceError(url, f"label {word!r} in row {number}", remedy)
        labels.append(Row(url, row["slide"], word, _LABEL_WORDS[word]))
    return tuple(labels)


def read_mpp(url: str) -> tuple[Row[float], ...]:
    """Read a table of um per level-0 pixel.

    Args:
        url: CSV table with the columns `slide` and `mpp_um`.

    Raises:
        SourceError: The table cannot be used, or a value is impossible.
        StorageError: It cannot be read.
    """
    table = read_table(
        url,
        {"slide": ("slide",), "mpp_um": ("mpp_um",)},
        needed=("slide", "mpp_um"),
        remedy="Give a CSV table with the columns slide and mpp_um",
    )
    values = []
    for row in table.rows:
        item = f"{url}, {row['slide']}"
        try:
            mpp_um = float(row["mpp_um"])
        except ValueError as error:
            raise SourceError(item, f"mpp_um {row['mpp_um']!r}", "Give um/px") from error
        require_possible_mpp((mpp_um, mpp_um), "user table", item)
        values.append(Row(url, row["slide"], row["mpp_um"], mpp_um))
    return tuple(values)
