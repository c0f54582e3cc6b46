"""`manifest.json`: what became of every item of a batch, so that nothing goes unmentioned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Final

from pipeline.io.storage import read_bytes, read_range, write_bytes
from pipeline.records import ManifestEntry

MANIFEST_END: Final = b"]\n}\n"
_BLOCK_BYTES: Final = 1 << 20


def describe_rows(item: str, reasons: Sequence[str | None]) -> ManifestEntry:
    """State what became of a source with rows.

    Args:
        item: Public name of the source.
        reasons: Why each of its rows is unreadable, or None for one that is readable.

    Returns:
        A source all of whose rows are unreadable has failed; one that lost some is `done`, and
        its reason counts them.
    """
    lost = [reason for reason in reasons if reason is not None]
    if lost and len(lost) == len(reasons):
        return ManifestEntry(item, "failed", lost[0])
    count = f"{len(lost)} of {len(reasons)} tiles unreadable, first: {lost[0]}" if lost else ""
    return ManifestEntry(item, "done", count)


def add_remark(entry: ManifestEntry, remarks: Mapping[str, str]) -> ManifestEntry:
    """Add the remark on an item to its entry, unless it has failed."""
    remark = remarks.get(entry.item) if entry.state != "failed" else None
    if not remark:
        return entry
    return replace(entry, reason="; ".join(filter(None, [entry.reason, remark])))


def write_manifest(url: str, entries: Sequence[ManifestEntry], **facts: datetime | str) -> None:
    """Write a manifest.

    Args:
        url: URL of the file.
        entries: One entry for every item.
        **facts: Further facts of the run, e.g. its time.
    """
    counts = Counter[str](entry.state for entry in entries)
    items = b"".join(encode_entries(entries))
    write_bytes(url, encode_head(counts, **facts) + items + MANIFEST_END)


def encode_head(counts: Mapping[str, int], **facts: datetime | str) -> bytes:
    """Encode what a manifest says before its entries, which `encode_entries` encodes.

    Args:
        counts: Number of entries by state.
        **facts: Further facts of the run, e.g. its time.
    """
    head = {
        **{name: str(value) for name, value in facts.items()},
        "counts": dict(sorted(counts.items())),
        "items": [],
    }
    text = json.dumps(head, indent=1, ensure_ascii=False)
    return text[: text.rindex("]")].encode()


def encode_entries(entries: Iterable[ManifestEntry]) -> Iterator[bytes]:
    """Encode the entries of a manifest, one after the other; `MANIFEST_END` ends the file."""
    separator = ""
    for entry in entries:
        known = {name: value for name, value in asdict(entry).items() if name != "facts" or value}
        # Two lists around it indent it as in the file; their brackets are cut off.
        text = json.dumps([[known]], indent=1, ensure_ascii=False)[4:-5]
        # A name that is no text in UTF-8 comes with surrogates.
        yield f"{separator}{text}".encode(errors="backslashreplace")
        separator = ","
    if separator:
        yield b"\n "


def read_manifest(url: str) -> tuple[ManifestEntry, ...]:
    """Read the entries of a manifest."""
    return tuple(ManifestEntry(**item) for item in json.loads(read_bytes(url))["items"])


def stream_manifest(url: str) -> Iterator[ManifestEntry]:
    """Read the entries of a manifest that `write_manifest` has written, a block at a time."""
    at, rest = 0, b""
    while block := read_range(url, at, at + _BLOCK_BYTES):
        at += len(block)
        # No text of JSON holds a line break: these ends are those of entries.
        *entries, rest = (rest + block).split(b"\n  }")
        for entry in entries:
            yield ManifestEntry(**json.loads(b"{" + entry.partition(b"\n  {")[2] + b"}"))
