"""The ledger of a model, append-only: its versions, which became champion and why, what was scored.

A dataset has one too, in its folder `ledger/`: what was removed from it, by whom and why.

Entry n is one object, such as `00000012.json`, created only if it does not exist: of many writers
exactly one succeeds, and the others continue with n + 1. Each entry holds the SHA-256 of the bytes
of the entry before, so that changing, removing or inserting one breaks every later link. A digest
kept elsewhere, in the registry's tags, also reveals a ledger whose end was cut off.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Literal, TypeAlias

from pipeline.errors import AbsentError, RegistryError
from pipeline.io import storage
from pipeline.records import JSON

Kind: TypeAlias = Literal[
    "registered",
    "promoted",
    "refused",
    "held",
    "rolled_back",
    "found",
    "scored",
    "removing",
    "removed",
]

NO_DIGEST: Final = "0" * 64
_NAME: Final = re.compile(r"\d{8}\.json")
_REMEDY: Final = "Compare with a copy of the ledger, and restore what was written first"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a ledger.

    Args:
        sequence: Number of the entry, from 1.
        kind: The event; `found` is an alias that something else had moved.
        at: Time of the event, ISO 8601 in UTC.
        content: Facts of the event, by name.
        before: SHA-256 of the entry before; zeros for the first.
        digest: SHA-256 of this entry's bytes.
        url: Path or URL of the entry.
    """

    sequence: int
    kind: str
    at: str
    content: Mapping[str, JSON]
    before: str
    digest: str
    url: str

    @property
    def reference(self) -> str:
        """URL and digest, which others keep to refer to this entry."""
        return f"{self.url}#{self.digest}"

    @property
    def summary(self) -> str:
        """Describe the event in one line."""
        known = self.content
        if self.kind == "scored":
            ends = "".join(f", {end} {known[end]}" for end in ("since", "until") if end in known)
            return f"version {known['model_version']}, {known['scored_count']} images{ends}"
        if self.kind in {"removing", "removed"}:
            what = f"{known['what']} {known['id']}, {known['image_count']} images"
            return f"{what}, by {known['name']}: {known['reason']}"
        if self.kind == "registered":
            files = known["files"]
            count = len(files) if isinstance(files, dict) else 0
            return f"version {known['version']}, {count} files{self._answer}"
        if self.kind in {"refused", "held"}:
            return f"version {known['challenger_version']}{self._answer}"
        if self.kind == "rolled_back":
            return f"version {known['champion']} for {known['withdrawn']}: {known['reason']}"
        return f"version {known['champion']}{self._answer}"

    @property
    def _answer(self) -> str:
        """Say who decided and why, if a person did."""
        answer = self.content.get("answer")
        if not isinstance(answer, dict) or not answer:
            return ""
        return f", by {answer['name']}: {answer['reason']}"


def append(url: str, kind: Kind, content: Mapping[str, JSON]) -> Entry:
    """Append an entry, whatever other writers append meanwhile.

    Args:
        url: Folder or prefix of the ledger; made if absent.
        kind: The event that the entry records.
        content: Facts of the event; numbers must be finite, as JSON has no others.

    Raises:
        StorageError: It cannot be written.
    """
    head = read_head(url)
    while True:
        made = append_after(url, head, kind, content)
        if made is not None:
            return made
        head = _read(url, head.sequence + 1 if head else 1)


def append_after(
    url: str, head: Entry | None, kind: Kind, content: Mapping[str, JSON]
) -> Entry | None:
    """Append an entry only if a given one is still the last, so that the ledger acts as a lock.

    Args:
        url: Folder or prefix of the ledger; made if absent.
        head: The entry that must be the last; None for an empty ledger.
        kind: The event that the entry records.
        content: Facts of the event; numbers must be finite, as JSON has no others.

    Returns:
        The entry, or None if another writer appended first.
    """
    sequence = head.sequence + 1 if head else 1
    record = {
        "sequence": sequence,
        "kind": kind,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "before": head.digest if head else NO_DIGEST,
        "content": content,
        # Identifies our own write if the store's answer to it was lost.
        "writer": uuid.uuid4().hex,
    }
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    data = f"{text}\n".encode()
    target = _url_of(url, sequence)
    if storage.create_bytes(target, data) or storage.read_bytes(target) == data:
        return _parse(target, data)
    return None


def read_head(url: str) -> Entry | None:
    """Read the last entry; None for a ledger that is empty or absent."""
    names = _list(url)
    return _read(url, int(names[-1][:8])) if names else None


def read_entries(url: str) -> tuple[Entry, ...]:
    """Read a whole ledger and check every link.

    Raises:
        RegistryError: An entry is missing, changed or out of place; names the first.
        StorageError: It cannot be read.
    """
    entries: list[Entry] = []
    for place, name in enumerate(_list(url), start=1):
        if int(name[:8]) != place:
            raise RegistryError(url, f"entry {place} is missing", _REMEDY)
        entry = _read(url, place)
        expected = entries[-1].digest if entries else NO_DIGEST
        if entry.sequence != place:
            raise RegistryError(entry.url, f"says that it is entry {entry.sequence}", _REMEDY)
        if entry.before != expected:
            changed = f"entry {place - 1} is not the one that entry {place} follows"
            raise RegistryError(url, changed, _REMEDY)
        entries.append(entry)
    return tuple(entries)


def require_known(url: str, entries: Sequence[Entry], reference: str) -> None:
    """Check that an entry is there which the registry refers to.

    Args:
        url: Folder or prefix of the ledger.
        entries: All entries of the ledger.
        reference: The registry's `Entry.reference`; empty if it has none.

    Raises:
        RegistryError: It is missing or differs. The chain alone cannot reveal a lost end.
    """
    target, _, digest = reference.rpartition("#")
    if reference and digest not in {entry.digest for entry in entries}:
        problem = f"the registry refers to {target}, which is not there as it was written"
        remedy = "Restore it from a copy; if it was moved, `normscope ledger NAME --move FOLDER`"
        raise RegistryError(url, problem, remedy)


def _url_of(url: str, sequence: int) -> str:
    return storage.join(url, f"{sequence:08d}.json")


def _list(url: str) -> list[str]:
    names = (storage.name_of(info.url) for info in storage.list_objects(url.rstrip("/") + "/"))
    return sorted(name for name in names if _NAME.fullmatch(name))


def _read(url: str, sequence: int) -> Entry:
    target = _url_of(url, sequence)
    try:
        return _parse(target, storage.read_bytes(target))
    except AbsentError as error:
        raise RegistryError(target, "this entry is missing", _REMEDY) from error


def _parse(url: str, data: bytes) -> Entry:
    try:
        record = json.loads(data)
        return Entry(
            int(record["sequence"]),
            str(record["kind"]),
            str(record["at"]),
            record["content"],
            str(record["before"]),
            sha256(data).hexdigest(),
            url,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(url, f"is not an entry of a ledger ({error})", _REMEDY) from error
