"""Camelyon16 as it is published: official names, their labels and splits, and published errata.

Bejnordi et al., JAMA 2017; https://camelyon17.grand-challenge.org/Data/. Two layouts are in use,
and `slides.list_slides` reads both, on disk or on S3:

    training/normal/normal_001.tif                 images/normal_001.tif
    training/tumor/tumor_001.tif                   images/tumor_001.tif
    training/lesion_annotations/tumor_001.xml      annotations/tumor_001.xml
    testing/images/test_001.tif                    images/test_001.tif
    testing/lesion_annotations/test_001.xml        annotations/test_001.xml
    testing/reference.csv

Label and split follow from the official names; the labels of test slides are in `reference.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias, get_args

from pipeline.errors import SettingsError, SourceError
from pipeline.records import Label, Split
from pipeline.sources.sheet import SheetRow
from pipeline.sources.tables import read_table

ErratumState: TypeAlias = Literal["excluded", "partly_annotated"]
NO_ERRATA: Final = "none"
REFERENCE_NAME: Final = "reference.csv"
_STATES: Final = get_args(ErratumState)
_OFFICIAL_NAME: Final = re.compile(r"(normal|tumor|test)_\d+", re.IGNORECASE)
_OFFICIAL_FOLDERS: Final = frozenset({"normal", "tumor", "images"})
_MEANINGS: Final[Mapping[str, tuple[Label | None, Split]]] = {
    "normal": (Label.NORMAL, "train"),
    "tumor": (Label.ANOMALOUS, "train"),
    "test": (None, "test"),
}


@dataclass(frozen=True, slots=True)
class Erratum:
    """A known error of a published slide.

    Args:
        state: `excluded`, or `partly_annotated`: lesions may lie outside the outlines.
        reason: Error of the published slide, in words.
        source: Publication or page that reports the error.
    """

    state: ErratumState
    reason: str
    source: str


def parse_name(stem: str) -> tuple[Label | None, Split] | None:
    """Read label and official split from a slide's name without suffix; None for other names."""
    official = _OFFICIAL_NAME.fullmatch(stem)
    return _MEANINGS[official[1].lower()] if official else None


def lies_as_published(url: str) -> bool:
    """Whether a slide's own folder is called as one that the data set is published in."""
    return PurePosixPath(url).parent.name.lower() in _OFFICIAL_FOLDERS


def make_row(stem: str, path: str) -> SheetRow:
    """Make the row that the official names would have in a sample sheet; empty for other names.

    Args:
        stem: The slide's name without suffix.
        path: The slide's path below the source.
    """
    label, split = parse_name(stem) or (None, None)
    return SheetRow("official names", 0, path, split=split, label=label)


def read_errata(url: str | None = None) -> dict[str, Erratum]:
    """Read the errata of Camelyon16, by slide name in lower case.

    Args:
        url: CSV table with the columns `slide`, `state`, `reason` and `source`; None for the one
            that comes with the package (`pipeline/data/camelyon16_errata.csv`), `none` for none.

    Raises:
        SourceError: The table cannot be used.
        SettingsError: Two rows of one slide differ.
        StorageError: The table cannot be read.
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


def find_erratum(stem: str, errata: Mapping[str, Erratum]) -> Erratum | None:
    """Find the erratum of a slide; only official names have one."""
    return errata.get(stem.lower()) if parse_name(stem) else None
