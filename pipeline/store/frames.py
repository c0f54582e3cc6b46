"""A dataset as pandas and xarray see it. Imported when it is asked for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype, is_string_dtype

from pipeline.errors import SettingsError
from pipeline.io.storage import join, open_zarr_store
from pipeline.store.dataset import Dataset, read_fact
from pipeline.store.part import Part
from pipeline.store.spec import MEASURES

_LABELS: Final = "label is 0 (normal), 1 (anomalous) or -1 (unknown)"


def make_frame(dataset: Dataset) -> pd.DataFrame:
    """Read a whole dataset as a table; see `Dataset.to_frame`."""
    numbers = [number for number, part in enumerate(dataset.parts) if part.image_count]
    return pd.concat([make_part_frame(dataset, number) for number in numbers])


def make_part_frame(dataset: Dataset, number: int) -> pd.DataFrame:
    """Read the columns and facts of one part as a table.

    Args:
        dataset: The open dataset.
        number: Place of the part in the table of parts.
    """
    opened = dataset.open_part(number)
    columns: dict[str, Any] = {}
    for name in dataset.column_names:
        if name not in dataset.attributes["columns"]:
            columns[name] = read_fact(dataset.parts[number], name)
            continue
        values = opened.column(name)
        if values.ndim == 2:
            stem = name.removesuffix("_yx")
            columns |= {f"{stem}_y": values[:, 0], f"{stem}_x": values[:, 1]}
        else:
            columns[name] = values
    start, stop = (int(row) for row in dataset.starts[number : number + 2])
    return pd.DataFrame(columns, index=pd.RangeIndex(start, stop, name="row"))


def query_part(dataset: Dataset, number: int, where: str) -> NDArray[np.int64]:
    """Find the rows of a part that meet a condition.

    Args:
        dataset: The open dataset.
        number: Place of the part in the table of parts.
        where: Condition in the language of `pandas.DataFrame.query`.

    Returns:
        int64 (n,), rows of the dataset.

    Raises:
        SettingsError: The condition cannot be evaluated, or compares a number with a text, which
            pandas takes for unequal.
    """
    frame = make_part_frame(dataset, number)
    _require_comparable(frame, where)
    try:
        return frame.query(where, engine="python").index.to_numpy(np.int64)
    except Exception as error:  # pandas raises what its parser and the columns raise
        remedy = f"Columns: {', '.join(frame.columns)}"
        if "cannot assign" in str(error):
            remedy = f"Say `==` for equal. {remedy}"
        raise SettingsError("where", f"{where!r} ({error})", remedy) from error


def _require_comparable(frame: pd.DataFrame, where: str) -> None:
    """Refuse to compare a column of numbers with a text, or of texts with a number."""
    for name, value in _list_comparisons(where):
        if name not in frame or value is None:
            continue
        is_text, shown = isinstance(value, str), f"{where!r} compares"
        if is_text and is_numeric_dtype(frame[name]):
            remedy = _LABELS if name == "label" else "Give its value without quotes"
            raise SettingsError("where", f"{shown} {name}, no text, with {value!r}", remedy)
        if not is_text and is_string_dtype(frame[name]):
            problem = f"{shown} {name}, a text, with {value!r}"
            raise SettingsError("where", problem, "Give its value in quotes")


def _list_comparisons(where: str) -> Iterator[tuple[str, Any]]:
    """List what a condition compares: a name, and a value that is written out."""
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError):  # pandas says why, or knows more than Python, as `@name`
        return
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    for node in compared:
        for pair in pairwise([node.left, *node.comparators]):
            for column, other in (pair, pair[::-1]):
                values = other.elts if isinstance(other, ast.List | ast.Tuple) else [other]
                for value in values:
                    if isinstance(column, ast.Name) and isinstance(value, ast.Constant):
                        yield column.id, value.value


def open_xarray(dataset: Dataset) -> xarray.Dataset:
    """Open a dataset lazily; see `Dataset.to_xarray`.

    Args:
        dataset: The open dataset.
    """
    opened = [_open_part(dataset, part) for part in dataset.parts if part.image_count]
    attributes = {
        name: dataset.attributes[name]
        for name in ("modality", "source", "mpp_um", "fingerprint", "code_version")
    }
    whole = xarray.concat(opened, dim="image", data_vars="all", coords="all", compat="override")
    return whole.assign_attrs({k: v for k, v in attributes.items() if v is not None})


def _open_part(dataset: Dataset, part: Part) -> xarray.Dataset:
    store = open_zarr_store(join(dataset.url, part.place), read_only=True)
    found = xarray.open_zarr(store, consolidated=True)
    # A variable must not be called like its dimension, or xarray takes it for an index.
    found = found.reset_coords(drop=False).rename_vars({"image": "pixels"})
    if MEASURES in found:
        names = [str(name) for name in found["measure"].to_numpy()]
        measures = found[MEASURES].drop_vars("measure")
        found = found.drop_dims("measure").assign(
            {name: measures[:, place] for place, name in enumerate(names)}
        )
    facts = {"part": part.name, **part.facts}
    for name in ("group_id", "split", "source_digest"):
        if name not in found:
            facts[name] = getattr(part, name)
    count = part.image_count
    repeated: xarray.Dataset = found.assign(
        {
            name: ("image", np.full(count, value, object if isinstance(value, str) else None))
            for name, value in facts.items()
        }
    )
    return repeated.drop_attrs()
