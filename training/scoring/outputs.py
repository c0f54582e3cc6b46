"""Results that appear at once: written under a name of their own, then pointed at.

    OUTPUT/results/NAME/...     scores.parquet, scores.csv, worklist.html, manifest.json
    OUTPUT/...                  copies of the same files under fixed names
    OUTPUT/manifest.json        written last; `results` in it names the current folder

NAME follows from what was scored and by what: nothing new gives the same name, and no work.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AbsentError
from pipeline.ingest.manifest import (
    MANIFEST_END,
    encode_entries,
    encode_head,
    stream_manifest,
)
from pipeline.io import storage
from pipeline.records import ManifestEntry
from pipeline.store.dataset import Dataset
from training.data.chosen_rows import ChosenRows
from training.data.part_columns import read_column

MANIFEST: Final = "manifest.json"
_FOLDER: Final = "results"
_BLOCK_BYTES: Final = 8 << 20
_HEAD_BYTES: Final = 1 << 16
_AFTER_FACTS: Final = b'\n "counts": '  # no text of JSON holds a line break


def name_results(*parts: object) -> str:
    """Name results by the parts they follow from, e.g. a fingerprint and a version."""
    text = json.dumps([str(part) for part in parts], ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:24]


def read_facts(output_url: str) -> Mapping[str, Any]:
    """Read what the manifest says of the current results; empty where there are none.

    Its entries, one for each image, are not read: the facts come before them.
    """
    url, head = storage.join(output_url, MANIFEST), b""
    try:
        while block := storage.read_range(url, len(head), len(head) + _HEAD_BYTES):
            head += block
            facts, is_whole, _ = head.partition(_AFTER_FACTS)
            if is_whole:
                return dict(json.loads(facts.rstrip(b",") + b"}"))
    except AbsentError:
        return {}
    whole = json.loads(head)
    return {name: value for name, value in whole.items() if name not in {"items", "counts"}}


@dataclass(frozen=True)
class Outcomes:
    """What became of every item, as a local file of the manifest's entries.

    Args:
        path: Local file of the entries as `encode_entries` encodes them.
        counts: Number of items by state.
        failures: Entries of the items that failed.
    """

    path: Path
    counts: Mapping[str, int]
    failures: tuple[ManifestEntry, ...]

    @classmethod
    def write(cls, path: Path, entries: Iterable[ManifestEntry]) -> Self:
        """Write the entries; those of failed items are held too."""
        counts, failures = Counter[str](), []

        def watch() -> Iterator[ManifestEntry]:
            for entry in entries:
                counts[entry.state] += 1
                if entry.state == "failed":
                    failures.append(entry)
                yield entry

        with path.open("wb") as file:
            file.writelines(encode_entries(watch()))
        return cls(path, counts, tuple(failures))


def publish(
    output_url: str,
    name: str,
    files: Iterable[tuple[str, bytes | Path]],
    outcomes: Outcomes,
    **facts: str,
) -> None:
    """Write results, then make them the current ones; a kill before that leaves the old ones.

    Args:
        output_url: Folder or prefix of the results.
        name: Name of the results, from `name_results`.
        files: Name and content of each file, in memory or as a local file; one is taken at a time.
        outcomes: Manifest entries of every item, as `Outcomes.write` has written them.
        **facts: Further facts that the manifest states.

    Raises:
        StorageError: The output cannot be written.
    """
    folder, digests, local = storage.join(output_url, _FOLDER, name), dict[str, str](), {}
    for file, content in files:
        _write(storage.join(folder, file), content)
        if isinstance(content, Path):
            local[file] = content
        digests[file] = digest_file(content)
    whole = {
        **facts,
        "results": f"{_FOLDER}/{name}",
        **{f"{file} sha256": digest for file, digest in digests.items()},
    }
    head = encode_head(outcomes.counts, **whole)
    _write(storage.join(folder, MANIFEST), outcomes.path, head, MANIFEST_END)
    for file in digests:
        _write(
            storage.join(output_url, file),
            local.get(file) or storage.read_bytes(storage.join(folder, file)),
        )
    _write(storage.join(output_url, MANIFEST), outcomes.path, head, MANIFEST_END)


def digest_file(content: bytes | Path) -> str:
    """SHA-256 of bytes, or of a local file, as hexadecimal digits."""
    digest = sha256()
    for block in _read_blocks(content):
        digest.update(block)
    return digest.hexdigest()


def _write(url: str, content: bytes | Path, head: bytes = b"", end: bytes = b"") -> None:
    if isinstance(content, bytes):
        storage.write_bytes(url, content)
    else:
        storage.write_parts(url, chain([head], _read_blocks(content), [end]))


def _read_blocks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def list_outcomes(
    dataset: Dataset, asked: ChosenRows, rows: NDArray[np.int64]
) -> Iterator[ManifestEntry]:
    """List the outcome of every image asked for, then the items that the ingest left out.

    Args:
        dataset: Dataset that was scored; names are read part by part.
        asked: Rows of the dataset that were to be scored.
        rows: int64 (n,), rows that have a score, in any order.
    """
    known, scored = set[str](), ChosenRows.of(rows, dataset.chunk_starts)
    for number, first in enumerate(dataset.starts[:-1].tolist()):
        span = first, int(dataset.starts[number + 1])
        own = asked.list_between(*span)
        if not len(own):
            continue
        opened = dataset.open_part(number)
        names = read_column(opened, "image_id")[own - first].tolist()
        reasons = opened.read_reasons() if opened.part.unreadable_count else {}
        known.update(reasons.values())
        is_done = np.isin(own, scored.list_between(*span))
        for row, name, is_scored in zip(own.tolist(), names, is_done.tolist(), strict=True):
            if is_scored:
                yield ManifestEntry(name, "done")
            else:
                reason = reasons.get(row - first, "the model gave no finite score")
                yield ManifestEntry(name, "failed", reason)
    yield from _list_left_out(dataset, known)


def _list_left_out(dataset: Dataset, known: set[str]) -> Iterator[ManifestEntry]:
    """Items that never became images; a source whose images all failed is listed by them."""
    url = storage.join(dataset.url, MANIFEST)
    if not storage.exists(url):
        return
    for entry in stream_manifest(url):
        if entry.state != "done" and not (entry.state == "failed" and entry.reason in known):
            yield entry
