"""Who is champion: the ledger says so, and the registry's aliases follow it.

A move of the alias is an entry of the ledger, appended only if no other move came between: of two
promotions or rollbacks at once, one is refused. Only then do the aliases follow. Whoever is killed
in between leaves aliases behind the ledger; the next command brings them up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import RegistryError
from pipeline.io import storage
from pipeline.sources.modified_range import ALWAYS, Period
from pipeline.store.dataset import JSON
from training.registry.ledger import Entry, Kind, append, append_after, read_entries, require_known
from training.registry.versions import (
    CHAMPION,
    PREVIOUS,
    aliases,
    delete_alias,
    load_version,
    model_tags,
    set_alias,
    tag_model,
)
from training.score import ScoreReport

logger = logging.getLogger(__name__)

LEDGER_TAG: Final = "ledger"
ENTRY_TAG: Final = "ledger_entry"
_MOVES: Final = frozenset({"promoted", "rolled_back", "found"})


@dataclass(frozen=True)
class Standing:
    """Where a model stands.

    Args:
        model_name: Registered name.
        ledger_url: Its ledger.
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
    """A ledger, every link of it verified.

    Args:
        model_name: Registered name.
        ledger_url: Where it lies.
        entries: From the first to the last.
        champion: The version that scores.
    """

    model_name: str
    ledger_url: str
    entries: tuple[Entry, ...]
    champion: str | None


@dataclass(frozen=True)
class RollbackReport:
    """The outcome of a rollback.

    Args:
        model_name: Registered name.
        champion: The version that is champion again.
        withdrawn: The version that was.
        reason: Why.
        entry: Of the ledger.
    """

    model_name: str
    champion: str
    withdrawn: str
    reason: str
    entry: Entry


def find_ledger(name: str, ledgers_url: str) -> str:
    """The ledger of a model: as its tag says, else `NAME` below the given folder, and tag it so.

    Raises:
        RegistryError: There is no such model.
    """
    tagged = model_tags(name).get(LEDGER_TAG)
    if tagged is None:
        tagged = storage.join(ledgers_url, name)
        tag_model(name, LEDGER_TAG, tagged)
    return tagged


def settle(name: str, ledgers_url: str) -> Standing:
    """Verify the ledger, bring the aliases up to it, and say where the model stands.

    An alias that something else has moved since is written down as found, and counts.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    url = find_ledger(name, ledgers_url)
    entries = read_entries(url)
    known = model_tags(name).get(ENTRY_TAG)
    require_known(url, entries, [known] if known else [])
    move, alias = _last_move(entries), aliases(name).get(CHAMPION)
    if move is not None and alias != move.content["champion"] and known != move.reference:
        logger.warning("%s: an alias was left behind entry %d", name, move.sequence)
        move = _project(name, url, move)
    elif alias != (move.content["champion"] if move else None):
        found: Mapping[str, JSON] = {"champion": alias, "past": _past_of_found(name, alias, move)}
        move = append_after(url, entries[-1] if entries else None, "found", found)
        if move is None:
            return settle(name, ledgers_url)  # somebody else is at work: look again
        _project(name, url, move)
        entries = (*entries, move)
    champion = move.content["champion"] if move else None
    head = entries[-1] if entries else None
    return Standing(name, url, head, str(champion) if champion else None, _past_of(move))


def crown(
    standing: Standing,
    kind: Kind,
    champion: str,
    content: Mapping[str, JSON],
    *,
    past: Sequence[str] | None = None,
) -> Entry:
    """Write a move into the ledger; `follow` then moves the aliases.

    Args:
        standing: That the decision rests on.
        kind: `promoted` or `rolled_back`.
        champion: The version to be champion.
        content: What else is to be known.
        past: Champions before it, the latest last; the present one and those before that by
            default.

    Raises:
        RegistryError: The champion has changed since.
    """
    head = standing.head
    _require_unmoved(standing, aliases(standing.model_name).get(CHAMPION))
    whole = {**content, **describe_move(standing, champion, past)}
    while True:
        made = append_after(standing.ledger_url, head, kind, whole)
        if made is not None:
            return made
        entries = read_entries(standing.ledger_url)
        newer = [entry for entry in entries if not head or entry.sequence > head.sequence]
        for entry in newer:
            if entry.kind in _MOVES:
                _require_unmoved(standing, str(entry.content["champion"]), is_certain=True)
        head = entries[-1]


def describe_move(
    standing: Standing, champion: str, past: Sequence[str] | None = None
) -> dict[str, JSON]:
    """What an entry that moves the champion says of the move.

    Args:
        standing: Before it.
        champion: The version to be champion.
        past: Champions before it; the present one and those before that by default.
    """
    if past is None:
        past = (*standing.past, standing.champion) if standing.champion else standing.past
    return {"champion": champion, "past": list(past), "withdrawn": standing.champion}


def follow(standing: Standing, move: Entry) -> None:
    """Let the aliases follow a move."""
    _project(standing.model_name, standing.ledger_url, move)


def rollback(name: str, ledgers_url: str, *, reason: str) -> RollbackReport:
    """Make the champion before this one champion again.

    Args:
        name: Registered name.
        ledgers_url: Where ledgers of models without one go.
        reason: Why, for the ledger.

    Raises:
        RegistryError: There is none before it, it does not load, or the champion has changed
            meanwhile.
    """
    standing = settle(name, ledgers_url)
    if standing.champion is None or not standing.past:
        problem = "no version was champion before this one"
        raise RegistryError(name, problem, "Train and promote a better version instead")
    champion = load_version(name, standing.past[-1]).version
    content: Mapping[str, JSON] = {"model_name": name, "reason": reason}
    move = crown(standing, "rolled_back", champion, content, past=standing.past[:-1])
    follow(standing, move)
    return RollbackReport(name, champion, standing.champion, reason, move)


def record_scoring(report: ScoreReport, ledgers_url: str, period: Period = ALWAYS) -> None:
    """Write a scoring into the model's ledger, unless its results are there already.

    Args:
        report: Of the scoring.
        ledgers_url: Where ledgers of models without one go.
        period: Only scans of it were looked at.
    """
    url = find_ledger(report.model_name, ledgers_url)
    entries = read_entries(url)
    key = (report.output_url, report.results)
    if key in {
        (entry.content.get("output_url"), entry.content.get("results")) for entry in entries
    }:
        return
    names = (
        "model_name",
        "model_version",
        "run_id",
        "output_url",
        "dataset_url",
        "results",
        "scored_count",
        "new_count",
        "anomalous_count",
    )
    append(url, "scored", {**{name: getattr(report, name) for name in names}, **period.to_facts()})


def verify(name: str, ledgers_url: str) -> LedgerReport:
    """Check every link of a model's ledger, and that the registry's tags point into it.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    standing = settle(name, ledgers_url)
    entries = read_entries(standing.ledger_url)
    return LedgerReport(name, standing.ledger_url, entries, standing.champion)


def _last_move(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind in _MOVES), None)


def _past_of(move: Entry | None) -> tuple[str, ...]:
    past = move.content["past"] if move else []
    return tuple(str(version) for version in past) if isinstance(past, list) else ()


def _past_of_found(name: str, alias: str | None, move: Entry | None) -> list[JSON]:
    """Champions before one that the ledger knows nothing of."""
    if move is None:
        return list(filter(None, [aliases(name).get(PREVIOUS)]))
    before = [*_past_of(move), str(move.content["champion"])]
    return list(before[: before.index(alias)] if alias in before else before)


def _project(name: str, url: str, move: Entry) -> Entry:
    """Set the aliases as the last move says, which may be a later one than the given."""
    while True:
        latest = _last_move(read_entries(url)) or move
        champion, past = latest.content["champion"], _past_of(latest)
        if past:
            set_alias(name, PREVIOUS, past[-1])
        else:
            delete_alias(name, PREVIOUS)
        if champion:
            set_alias(name, CHAMPION, str(champion))
        tag_model(name, ENTRY_TAG, latest.reference)
        # Who came later sets the aliases later, or we do it: the last to look sees the last move.
        now = _last_move(read_entries(url))
        if now is None or now.sequence == latest.sequence:
            logger.info("%s: version %s is champion, before %s", name, champion, past[-1:])
            return latest


def _require_unmoved(standing: Standing, now: str | None, *, is_certain: bool = False) -> None:
    if is_certain or now != standing.champion:
        raise RegistryError(
            standing.model_name,
            f"version {now} became champion meanwhile, not version {standing.champion}",
            "Run the command again, against the new champion",
        )
