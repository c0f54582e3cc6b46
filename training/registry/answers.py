"""A person's word on a challenger that the gate has held: approved or refused, by whom and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import RegistryError
from pipeline.store.dataset import JSON
from training.registry.champion import (
    ChampionState,
    describe_change,
    reconcile_aliases,
    update_aliases,
)
from training.registry.gate import Decision, Outcome
from training.registry.ledger import Entry, append_after, read_entries
from training.registry.promotion import PromotionReport, record_decision
from training.registry.versions import load_version

Verdict: TypeAlias = Literal["approve", "refuse"]

# Of the ledger; the others say nothing of who is to be champion.
_DECISIONS: Final = frozenset({"promoted", "refused", "held", "rolled_back", "found"})


class Answer(BaseModel):
    """What a person says of a held challenger; the ledger adds when.

    Args:
        verdict: Whether it becomes champion.
        name: Who says so.
        reason: Why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    verdict: Verdict
    name: str = Field(min_length=1)
    reason: str = Field(min_length=1)


def answer_held(model_name: str, answer: Answer, *, ledgers_url: str) -> PromotionReport:
    """Let a person decide what the gate could not; an approval moves the aliases.

    Args:
        model_name: Registered name.
        answer: The person's.
        ledgers_url: Folder of the ledger, where the model has none yet.

    Returns:
        The gate's report, its decision replaced by the person's.

    Raises:
        RegistryError: No challenger is held, perhaps because somebody has answered already, or it
            does not load.
    """
    outcome: Outcome = "promoted" if answer.verdict == "approve" else "refused"
    said = "Approved" if answer.verdict == "approve" else "Refused"
    reason = f"{said} by {answer.name}: {answer.reason}"
    return _conclude(model_name, ledgers_url, outcome, reason, answer.model_dump())


def refuse_unanswered(
    report: PromotionReport, wait_s: float, *, ledgers_url: str
) -> PromotionReport:
    """Refuse a held challenger that nobody has answered for in time.

    Args:
        report: Of the gate, that held it.
        wait_s: How long was waited.
        ledgers_url: As for `answer_held`.

    Returns:
        The report, its decision replaced.

    Raises:
        RegistryError: It is not held any more: somebody has answered in another way.
    """
    reason = f"Refused, as nobody answered within {wait_s:g} s"
    return _conclude(report.model_name, ledgers_url, "refused", reason, {})


def _conclude(
    model_name: str,
    ledgers_url: str,
    outcome: Outcome,
    reason: str,
    answer: Mapping[str, JSON],
) -> PromotionReport:
    """Write the outcome down unless anybody else does meanwhile, then let the aliases follow."""
    entry = None
    while entry is None:
        state = reconcile_aliases(model_name, ledgers_url)
        held = _find_held(state)
        report = _read_report(held)
        decision = replace(
            report.decision, outcome=outcome, reasons=(reason, *report.decision.reasons)
        )
        report = replace(report, decision=decision)
        path = str(held.content["record"]).removesuffix(".md") + "-answered"
        content: dict[str, JSON] = {
            **asdict(report),
            "run_id": held.content["run_id"],
            "record": f"{path}.md",
            "held_entry": held.sequence,
            "answer": dict(answer),
        }
        if outcome == "promoted":
            load_version(model_name, report.challenger_version)  # it must still be there
            content |= describe_change(state, report.challenger_version)
        entry = append_after(state.ledger_url, state.head, outcome, content)
    record_decision(report, str(content["run_id"]), path, entry)
    if outcome == "promoted":
        update_aliases(state.model_name, state.ledger_url, entry)
    return report


def _find_held(state: ChampionState) -> Entry:
    """The last decision, if it is that a challenger is held."""
    entries = [it for it in read_entries(state.ledger_url) if it.kind in _DECISIONS]
    if not entries or entries[-1].kind != "held":
        last = f"; the last decision: {entries[-1].kind}, {entries[-1].summary}" if entries else ""
        raise RegistryError(
            state.model_name,
            f"no challenger is held for a person{last}",
            "`normscope promote` compares a challenger, `normscope ledger` prints what was decided",
        )
    return entries[-1]


def _read_report(entry: Entry) -> PromotionReport:
    """The report that was written down with a decision."""
    known: Mapping[str, Any] = entry.content
    decision = Decision(
        known["decision"]["outcome"],
        tuple(known["decision"]["reasons"]),
        known["decision"]["numbers"],
    )
    names = {field.name for field in fields(PromotionReport)} - {"decision", "notes"}
    return PromotionReport(
        **{name: known[name] for name in names}, decision=decision, notes=tuple(known["notes"])
    )
