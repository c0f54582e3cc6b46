"""What tables say of single slides: errata of an archive, and um/px that a file lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal, TypeAlias, get_args

from pipeline.errors import SourceError
from pipeline.mpp import require_possible_mpp
from pipeline.sources.tables import read_table

ErratumState: TypeAlias = Literal["excluded", "partly_annotated"]
NO_ERRATA: Final = "none"
_STATES: Final = get_args(ErratumState)


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
    errata = {}
    for row in table.rows:
        state = next((known for known in _STATES if known == row["state"]), None)
        if state is None:
            raise SourceError(
                url, f"state {row['state']!r} of {row['slide']}", f"Use {' or '.join(_STATES)}"
            )
        errata[row["slide"].lower()] = Erratum(state, row["reason"], row["source"])
    return errata


def read_mpp(url: str) -> Mapping[str, float]:
    """Read a table of um per level-0 pixel, by slide name.

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
    values = {}
    for row in table.rows:
        item = f"{url}, {row['slide']}"
        try:
            mpp_um = float(row["mpp_um"])
        except ValueError as error:
            raise SourceError(item, f"mpp_um {row['mpp_um']!r}", "Give um/px") from error
        values[row["slide"]] = require_possible_mpp((mpp_um, mpp_um), "user table", item)[0]
    return values
