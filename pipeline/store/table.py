"""The table of parts: one row per part, in a Parquet file that the root document names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from hashlib import sha256
from io import BytesIO
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from pipeline.errors import AbsentError, SchemaError
from pipeline.io import storage
from pipeline.records import JSON
from pipeline.store.part import Part, SharedFacts
from pipeline.store.spec import ROOT, DatasetSpec

PREFIX: Final = "parts-"
_NAME: Final = re.compile(rf"{PREFIX}[0-9a-f]{{16}}\.parquet")
_NAMES: Final = tuple(field.name for field in fields(Part) if field.name != "facts")


def write_table(url: str, parts: Sequence[Part]) -> str:
    """Write a table of parts under a name that follows from its content.

    Args:
        url: URL of the dataset.
        parts: The parts, in the order of the dataset's rows.

    Returns:
        Name of the file.
    """
    data = encode_table(parts)
    name = name_table(data)
    target = storage.join(url, name)
    if not storage.holds(target, data):  # absent, or damaged since
        storage.write_bytes(target, data)
    return name


def name_table(data: bytes) -> str:
    """Name the file of a table of parts by its content.

    Args:
        data: Content of the file.
    """
    return f"{PREFIX}{blake3(data).hexdigest()[:16]}.parquet"


def compute_fingerprint(spec: DatasetSpec, parts: Sequence[Part]) -> str:
    """Compute the fingerprint: SHA-256 over content and parameters.

    It is the same whatever made the dataset, when, and in how many runs.

    Args:
        spec: Specification of the dataset.
        parts: All parts, in the order of the dataset's rows.
    """
    content: list[JSON] = [
        [part.name, part.digest, part.group_id, part.split] for part in parts if part.image_count
    ]
    facts = {**spec.attributes(), "parts": content}
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def encode_table(parts: Sequence[Part]) -> bytes:
    """Encode a table of parts; the same parts give the same bytes."""
    buffer = BytesIO()
    pq.write_table(tabulate_parts(parts), buffer, compression="zstd")
    return buffer.getvalue()


def tabulate_parts(parts: Sequence[Part]) -> pa.Table:
    """Make the table: the fields of `Part`, then a column for each fact, sorted by name."""
    facts = sorted({name for part in parts for name in part.facts})
    columns: dict[str, list[Any]] = {
        **{name: [getattr(part, name) for part in parts] for name in _NAMES},
        **{name: [part.facts.get(name) for part in parts] for name in facts},
    }
    return pa.table(columns)


def read_table(url: str, name: str) -> tuple[Part, ...]:
    """Read a table of parts.

    Args:
        url: URL of the dataset.
        name: Name of the table's file.

    Raises:
        SchemaError: The file is gone or damaged, or has a name that no table has.
    """
    if not _NAME.fullmatch(name):  # of a folder, say, which is no fault of the storage
        problem = f"parts_table {name!r} is not the name of a table of parts"
        raise SchemaError(storage.join(url, ROOT), problem, _REMEDY)
    place = storage.join(url, name)
    try:
        data = storage.read_bytes(place)
    except AbsentError as error:
        raise SchemaError(place, "the table of parts is gone", _REMEDY) from error
    if name_table(data) != name:
        raise SchemaError(place, "the table of parts is damaged", _REMEDY)
    table = pq.read_table(BytesIO(data))
    facts = [column for column in table.column_names if column not in _NAMES]
    return tuple(
        Part(
            **{column: row[column] for column in _NAMES},
            facts=SharedFacts({name: row[name] for name in facts if row[name] is not None}),
        )
        for row in table.to_pylist()
    )


_REMEDY: Final = "Run the same ingest again: parts that are whole are kept"
