"""Which version is champion: the ledger decides, and the registry's aliases are set to match.

A change of champion is an entry of the ledger, appended only if no other change came between: of
two promotions or rollbacks at once, one is refused. The aliases are set afterwards. A kill in
between leaves them behind the ledger; the next command that changes something updates them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import RegistryError
from pipeline.io import storage
from pipeline.records import JSON
from training.registry.ledger import Entry, Kind, append, append_after, read_entries
from training.registry.versions import (
    CHAMPION,
    ENTRY_TAG,
    LEDGER_TAG,
    PREVIOUS,
    aliases,
    claim_ledger,
    delete_alias,
    list_versions,
    load_version,
    model_tags,
    read_verified,
    require_tagged,
    set_alias,
    tag_model,
)

logger = logging.getLogger(__name__)

_CHANGES: Final = frozenset({"promoted", "rolled_back", "found"})


@dataclass(frozen=True)
class ChampionState:
    """The champion of a model, and the entry of the ledger up to which that holds.

    Args:
        model_name: Name of the registered model.
        ledger_url: Folder or prefix of the model's ledger.
        head: Last entry of the ledger; None for an empty one.
        champion: The version that scores; None before the first promotion.
        past: Champions before it, the latest last, those rolled back left out.
    """

    model_name: str
    ledger_url: str
    head: Entry | None
    champion: str | None
    past: tuple[str, ...]


@dataclass(frozen=True)
class LedgerReport:
    """A ledger whose links were all verified.

    Args:
        model_name: Name of the registered model.
        ledger_url: Folder or prefix of the model's ledger.
        entries: All entries, from the first to the last.
        champion: The version that scores, by the registry's alias; None if there is none.
        recorded_champion: The champion by the ledger. Where it differs from the alias, the next
            `promote`, `answer` or `rollback` reconciles both.
    """

    model_name: str
    ledger_url: str
    entries: tuple[Entry, ...]
    champion: str | None
    recorded_champion: str | None


@dataclass(frozen=True)
class RollbackReport:
    """The outcome of a rollback.

    Args:
        model_name: Name of the registered model.
        champion: The version that is champion again.
        withdrawn: The version that was champion until now; empty where it was deleted in MLflow.
        reason: The reason that the ledger keeps.
        entry: The ledger's entry of the rollback.
    """

    model_name: str
    champion: str
    withdrawn: str
    reason: str
    entry: Entry


def read_ledger(name: str, ledgers_url: str) -> LedgerReport:
    """Read a model's ledger and verify every link; changes nothing.

    Args:
        name: Name of the registered model.
        ledgers_url: Folder of the ledger if the model has none yet.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    url, entries = read_verified(name, ledgers_url)
    alias = aliases(name).get(CHAMPION)
    return LedgerReport(name, url, entries, alias, _champion_of(_last_change(entries)))


def move_ledger(name: str, ledgers_url: str) -> LedgerReport:
    """Move a model's ledger to another place, or tell the registry where it was moved to.

    What lies at the old place is copied as far as the new one lacks it; the old copy stays. Nothing
    changes unless the new place then holds every entry that the old one or the registry knows.

    Args:
        name: Name of the registered model.
        ledgers_url: Folder of ledgers; this one becomes `NAME` in it.

    Raises:
        RegistryError: There is no such model, or the ledgers at both places differ or lack entries
            that the registry knows.
    """
    tags, target = model_tags(name), storage.join(ledgers_url, name)
    source = tags.get(LEDGER_TAG, "")
    old, new = read_entries(source) if source else (), read_entries(target)
    for before, after in zip(old, new, strict=False):
        if before.digest != after.digest:
            problem = f"entry {after.sequence} differs from {before.url}"
            raise RegistryError(target, problem, "Move it to an empty folder")
    for entry in old[len(new) :]:
        copy = storage.join(target, storage.name_of(entry.url))
        storage.create_bytes(copy, storage.read_bytes(entry.url))
    entries = read_entries(target)
    require_tagged(target, entries, tags)
    tag_model(name, LEDGER_TAG, target)
    return read_ledger(name, ledgers_url)


def reconcile_aliases(name: str, ledgers_url: str) -> ChampionState:
    """Verify the ledger and make it and the registry's aliases agree.

    An alias that lags behind the ledger is updated. An alias that something else has moved is
    appended to the ledger as `found`, and counts.

    Args:
        name: Name of the registered model.
        ledgers_url: Folder in which the ledger is made if the model has none yet.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    url, entries = claim_ledger(name, ledgers_url)
    known = model_tags(name).get(ENTRY_TAG)
    change, alias = _last_change(entries), aliases(name).get(CHAMPION)
    is_known = change is not None and known is not None and known.endswith(f"#{change.digest}")
    if change is not None and alias != _champion_of(change) and not is_known:
        logger.warning("%s: an alias was left behind entry %d", name, change.sequence)
        change = update_aliases(name, url, change)
    elif alias != _champion_of(change):
        found: Mapping[str, JSON] = {"champion": alias, "past": _past_of_found(name, alias, change)}
        change = append_after(url, entries[-1] if entries else None, "found", found)
        if change is None:
            return reconcile_aliases(name, ledgers_url)  # another process appended: look again
        update_aliases(name, url, change)
        entries = (*entries, change)
    head = entries[-1] if entries else None
    return ChampionState(name, url, head, _champion_of(change), _past_of(change))


def append_change(
    state: ChampionState,
    kind: Kind,
    champion: str,
    content: Mapping[str, JSON],
    *,
    past: Sequence[str] | None = None,
) -> Entry:
    """Append a change of champion to the ledger; `update_aliases` then sets the aliases.

    Args:
        state: State of the model that the decision rests on.
        kind: `promoted` or `rolled_back`.
        champion: The version to be champion.
        content: Further facts that the entry keeps.
        past: Champions before it, the latest last; the present one and those before that by
            default.

    Raises:
        RegistryError: The champion has changed since.
    """
    head = state.head
    _require_unchanged(state, aliases(state.model_name).get(CHAMPION))
    whole = {**content, **describe_change(state, champion, past)}
    while True:
        made = append_after(state.ledger_url, head, kind, whole)
        if made is not None:
            return made
        entries = read_entries(state.ledger_url)
        newer = [entry for entry in entries if not head or entry.sequence > head.sequence]
        for entry in newer:
            if entry.kind in _CHANGES:
                _require_unchanged(state, _champion_of(entry), is_certain=True)
        head = entries[-1]


def describe_change(
    state: ChampionState, champion: str, past: Sequence[str] | None = None
) -> dict[str, JSON]:
    """The facts of a change of champion that its ledger entry keeps.

    Args:
        state: State of the model before the change.
        champion: The version to be champion.
        past: Champions before it; the present one and those before that by default.
    """
    if past is None:
        past = (*state.past, state.champion) if state.champion else state.past
    return {"champion": champion, "past": list(past), "withdrawn": state.champion}


def update_aliases(name: str, ledger_url: str, change: Entry) -> Entry:
    """Set the aliases `champion` and `previous` by the last change in the ledger.

    Args:
        name: Name of the registered model.
        ledger_url: Folder or prefix of the model's ledger.
        change: A change that the ledger holds; a later one takes precedence.

    Returns:
        The change that the aliases were set by.
    """
    while True:
        latest = _last_change(read_entries(ledger_url)) or change
        champion, past = _champion_of(latest), _past_of(latest)
        if past := _keep_versions(name, past):  # others were deleted in MLflow
            set_alias(name, PREVIOUS, past[-1])
        else:
            delete_alias(name, PREVIOUS)
        if champion:
            set_alias(name, CHAMPION, champion)
        tag_model(name, ENTRY_TAG, latest.reference)
        # A change appended meanwhile may have set the aliases before we did: then set them again.
        now = _last_change(read_entries(ledger_url))
        if now is None or now.sequence == latest.sequence:
            logger.info("%s: version %s is champion, before %s", name, champion, past[-1:])
            return latest


def rollback(name: str, ledgers_url: str, *, reason: str) -> RollbackReport:
    """Make the champion before this one champion again.

    Args:
        name: Name of the registered model.
        ledgers_url: Folder in which the ledger is made if the model has none yet.
        reason: The reason that the ledger keeps.

    Raises:
        RegistryError: There is none before it, it does not load, or the champion has changed
            meanwhile.
    """
    state = reconcile_aliases(name, ledgers_url)
    past = _keep_versions(name, state.past)
    if not past:
        problem = "no version was champion before this one"
        if state.past:
            problem = f"those that were champion before, {', '.join(state.past)}, were deleted"
        raise RegistryError(name, problem, "Train and promote a better version instead")
    champion = load_version(name, past[-1]).version
    content: Mapping[str, JSON] = {"model_name": name, "reason": reason}
    change = append_change(state, "rolled_back", champion, content, past=past[:-1])
    update_aliases(name, state.ledger_url, change)
    return RollbackReport(name, champion, state.champion or "", reason, change)


def record_scoring(name: str, facts: Mapping[str, JSON], *, ledgers_url: str) -> None:
    """Append a scoring to the model's ledger, unless its results are there already.

    Args:
        name: Name of the registered model.
        facts: Facts to keep; `output_url` and `results` tell one scoring from another.
        ledgers_url: Folder in which the ledger is made if the model has none yet.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    url, entries = claim_ledger(name, ledgers_url)
    key = ("output_url", "results")
    if not any(all(entry.content.get(k) == facts[k] for k in key) for entry in entries):
        append(url, "scored", facts)


def _last_change(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind in _CHANGES), None)


def _champion_of(change: Entry | None) -> str | None:
    champion = change.content["champion"] if change else None
    return str(champion) if champion else None


def _past_of(change: Entry | None) -> tuple[str, ...]:
    past = change.content["past"] if change else []
    return tuple(str(version) for version in past) if isinstance(past, list) else ()


def _keep_versions(name: str, past: Sequence[str]) -> tuple[str, ...]:
    """Of some versions those that MLflow still has, in their order."""
    there = list_versions(name) if past else frozenset()
    return tuple(version for version in past if version in there)


def _past_of_found(name: str, alias: str | None, change: Entry | None) -> list[JSON]:
    """Champions before one that the ledger has no entry of."""
    if change is None:
        return list(filter(None, [aliases(name).get(PREVIOUS)]))
    before = [*_past_of(change), str(change.content["champion"])]
    return list(before[: before.index(alias)] if alias in before else before)


def _require_unchanged(state: ChampionState, now: str | None, *, is_certain: bool = False) -> None:
    if is_certain or now != state.champion:
        raise RegistryError(
            state.model_name,
            f"version {now} became champion meanwhile, not version {state.champion}",
            "Run the command again, against the new champion",
        )
