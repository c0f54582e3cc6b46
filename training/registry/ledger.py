"""The ledger of a model: who became champion and why, what was scored; appended to, never edited.

Entry n is one object, `00000012.json`, created on condition that there is none: of many writers
exactly one makes it, and the others go on with n + 1. Each entry holds the SHA-256 of the bytes of
the one before, so that whoever changes, removes or inserts one breaks every later link. A digest
that is kept elsewhere (tags of the registry) also shows an end that was cut off.
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
from pipeline.store.dataset import JSON

Kind: TypeAlias = Literal["promoted", "refused", "held", "rolled_back", "found", "scored"]

NO_DIGEST: Final = "0" * 64
_NAME: Final = re.compile(r"\d{8}\.json")
_REMEDY: Final = "Compare with a copy of the ledger, and restore what was written first"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a ledger.

    Args:
        sequence: Its number, from 1.
        kind: What happened. `found`: an alias that something else had moved.
        at: When, ISO 8601 in UTC.
        content: What is to be known of it.
        before: SHA-256 of the entry before; zeros for the first.
        digest: SHA-256 of this entry's bytes.
        url: Where it lies.
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
        """What others keep to point here: URL and digest."""
        return f"{self.url}#{self.digest}"

    @property
    def summary(self) -> str:
        """What happened, in a line."""
        known = self.content
        if self.kind == "scored":
            ends = "".join(f", {end} {known[end]}" for end in ("since", "until") if end in known)
            return f"version {known['model_version']}, {known['scored_count']} images{ends}"
        if self.kind in {"refused", "held"}:
            return f"version {known['challenger_version']}{self._words_of_answer}"
        if self.kind == "rolled_back":
            return f"version {known['champion']} for {known['withdrawn']}: {known['reason']}"
        return f"version {known['champion']}{self._words_of_answer}"

    @property
    def _words_of_answer(self) -> str:
        """Who decided and why, where a person did."""
        answer = self.content.get("answer")
        if not isinstance(answer, dict) or not answer:
            return ""
        return f", by {answer['name']}: {answer['reason']}"


def append(
    url: str,
    kind: Kind,
    content: Mapping[str, JSON],
    *,
    at: datetime | None = None,
) -> Entry:
    """Append an entry, whatever others append meanwhile.

    Args:
        url: Folder or prefix of the ledger; made if absent.
        kind: What happened.
        content: Figures must be finite: JSON knows no others.
        at: When; now if None.

    Raises:
        StorageError: It cannot be written.
    """
    head = read_head(url)
    while True:
        made = append_after(url, head, kind, content, at=at)
        if made is not None:
            return made
        head = _read(url, head.sequence + 1 if head else 1)


def append_after(
    url: str,
    head: Entry | None,
    kind: Kind,
    content: Mapping[str, JSON],
    *,
    at: datetime | None = None,
) -> Entry | None:
    """Append an entry only if a given one is still the last: the ledger as a lock.

    Args:
        url: Of the ledger.
        head: The entry that must be the last; None for an empty ledger.
        kind: What happened.
        content: As for `append`, and so is `at`.
        at: When.

    Returns:
        The entry, or None where somebody else appended first.
    """
    sequence = head.sequence + 1 if head else 1
    record = {
        "sequence": sequence,
        "kind": kind,
        "at": (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
        "before": head.digest if head else NO_DIGEST,
        "content": content,
        # Tells our own write from another's where the answer to it was lost.
        "writer": uuid.uuid4().hex,
    }
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    data = f"{text}\n".encode()
    target = _url_of(url, sequence)
    if storage.create_bytes(target, data) or storage.read_bytes(target) == data:
        return _parse(target, data)
    return None


def read_head(url: str) -> Entry | None:
    """The last entry, or None for a ledger that is empty or absent."""
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


def require_known(url: str, entries: Sequence[Entry], references: Sequence[str]) -> None:
    """Check that entries which others point at are there, as they were.

    Args:
        url: Of the ledger.
        entries: All of it.
        references: Each an `Entry.reference`.

    Raises:
        RegistryError: One is missing or another; the chain alone cannot show an end cut off.
    """
    digests = {entry.digest for entry in entries}
    for reference in references:
        place, _, digest = reference.rpartition("#")
        if digest not in digests:
            problem = f"the registry points at {place}, which is not there as it was written"
            raise RegistryError(url, problem, _REMEDY)


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
        raise RegistryError(target, "this entry is gone", _REMEDY) from error


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
        raise RegistryError(url, f"is no entry of a ledger ({error})", _REMEDY) from error
