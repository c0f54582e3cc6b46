"""Promotion of a challenger: by the gate's decision, or by a person where the gate holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeline.errors import RegistryError, SchemaError
from pipeline.records import JSON, Label, Progress, ignore_progress
from pipeline.store.dataset import Dataset, open_dataset
from training.data.batches import choose_rows
from training.data.part_columns import read_rows
from training.evaluation.subgroups import SUBGROUP_COLUMNS
from training.registry.champion import (
    ChampionState,
    append_change,
    describe_change,
    reconcile_aliases,
    update_aliases,
)
from training.registry.fresh_process import score_in_fresh_process
from training.registry.gate import (
    Decision,
    Floats,
    Outcome,
    PromotionSettings,
    decide_promotion,
    limit_weights,
)
from training.registry.ledger import Entry, append, append_after, read_entries
from training.registry.versions import (
    CHALLENGER,
    load_version,
    log_record,
    resolve,
    tag_version,
    verified_files,
)
from training.scoring.kept_scores import score_rows
from training.scoring.loaded_model import ScoringModel
from training.settings import MEASURE

Verdict: TypeAlias = Literal["approve", "refuse"]

_REPRODUCED_IMAGES: Final = 8
_TOLERANCE: Final = 1e-5  # relative; another process may divide its work among threads differently
# Entries of the ledger that decide; the others say nothing of who is to be champion.
_DECISIONS: Final = frozenset({"promoted", "refused", "held", "rolled_back", "found"})


@dataclass(frozen=True)
class PromotionReport:
    """The outcome of a promotion.

    Args:
        model_name: Name of the registered model.
        challenger_version: The version that was compared with the champion.
        champion_version: The version that was champion before; None for the first.
        dataset_url: Sealed dataset whose validation split decided.
        dataset_fingerprint: Fingerprint of that dataset.
        image_count: Number of images that decided.
        decision: Outcome for the challenger, with its reasons.
        notes: Cautions that a reader must know first.
        entry_digest: Digest of the decision's entry in the ledger; empty if nothing was decided.
    """

    model_name: str
    challenger_version: str
    champion_version: str | None
    dataset_url: str
    dataset_fingerprint: str
    image_count: int
    decision: Decision
    notes: tuple[str, ...]
    entry_digest: str = ""

    @property
    def has_new_champion(self) -> bool:
        """Whether the alias has moved."""
        is_promoted = self.decision.outcome == "promoted"
        return is_promoted and self.champion_version != self.challenger_version

    def to_facts(self) -> dict[str, JSON]:
        """The facts that the ledger and the challenger's run keep."""
        facts = asdict(self)
        del facts["entry_digest"]  # the entry's own digest is known only after it is written
        return facts

    def to_markdown(self) -> str:
        """Render the record that is kept with the run."""
        against = f"version {self.champion_version}" if self.champion_version else "no champion yet"
        lines = [
            f"# {self.model_name} version {self.challenger_version}: {self.decision.outcome}",
            "",
            f"Against {against}, on {self.image_count} images of the validation split of "
            f"`{self.dataset_url}` (fingerprint `{self.dataset_fingerprint[:16]}`).",
            "",
            *(f"- {reason}" for reason in self.decision.reasons),
            *(f"- Note: {note}" for note in self.notes),
            "",
            "| figure | value |",
            "|---|---|",
            *(f"| {name} | {value:.6g} |" for name, value in self.decision.numbers.items()),
        ]
        return "\n".join(lines) + "\n"


class Answer(BaseModel):
    """A person's decision on a held challenger; the ledger adds the time.

    Args:
        verdict: Whether the challenger becomes champion.
        name: Name of the person who decides.
        reason: The reason that the ledger keeps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    verdict: Verdict
    name: str = Field(min_length=1)
    reason: str = Field(min_length=1)


def promote(
    model_name: str,
    dataset_url: str,
    *,
    ledgers_url: str,
    settings: PromotionSettings | None = None,
    on_progress: Progress = ignore_progress,
) -> PromotionReport:
    """Compare the challenger with the champion, and promote it if it passes the gate.

    Args:
        model_name: Name of the registered model.
        dataset_url: Sealed dataset whose validation split decides.
        ledgers_url: Folder in which the ledger is made if the model has none yet.
        settings: Criteria that the challenger must meet; the defaults if None.
        on_progress: Called with images scored and in all, over both versions.

    Raises:
        RegistryError: There is no such model or no challenger, or it does not load, or gives
            other scores in a fresh process.
        SchemaError: The dataset was prepared differently from a version's, or its validation
            split has no readable image of known label.
    """
    settings = settings or PromotionSettings()
    challenger = load_version(model_name, CHALLENGER)
    state = reconcile_aliases(model_name, ledgers_url)
    champion_version = state.champion
    dataset = open_dataset(dataset_url)
    rows = choose_labelled_rows(dataset)
    if champion_version == challenger.version:
        reasons = (f"Version {challenger.version} is the champion already",)
        decision = Decision("promoted", reasons, {})
    else:
        champion = load_version(model_name, champion_version) if champion_version else None
        decision = _compare(dataset, rows, challenger, champion, settings, on_progress)
    report = PromotionReport(
        model_name,
        challenger.version,
        champion_version,
        dataset_url,
        dataset.fingerprint,
        len(rows),
        decision,
        challenger.notes,
    )
    if champion_version == challenger.version:
        return report
    entry = _record_outcome(report, state, challenger.run_id)
    return replace(report, entry_digest=entry.digest)


def answer_held(
    model_name: str,
    answer: Answer,
    *,
    ledgers_url: str,
    version: str | None = None,
    entry_digest: str | None = None,
) -> PromotionReport:
    """Decide on the held challenger as a person says; an approval makes it champion.

    Args:
        model_name: Name of the registered model.
        answer: The person's decision.
        ledgers_url: Folder in which the ledger is made if the model has none yet.
        version: The version that the answer is about; whichever is held if None.
        entry_digest: Digest of the ledger entry that holds it; any entry if None.

    Returns:
        The gate's report, its decision replaced by the person's.

    Raises:
        RegistryError: No challenger is held, e.g. as it was answered already; another one is
            held than the answer is about; or it does not load.
    """
    outcome: Outcome = "promoted" if answer.verdict == "approve" else "refused"
    said = "Approved" if answer.verdict == "approve" else "Refused"
    reason = f"{said} by {answer.name}: {answer.reason}"
    return _replace_decision(
        model_name, ledgers_url, outcome, reason, answer.model_dump(), version, entry_digest
    )


def refuse_unanswered(
    report: PromotionReport, wait_s: float, *, ledgers_url: str
) -> PromotionReport:
    """Refuse a held challenger that nobody has answered for in time.

    Args:
        report: The gate's report that holds the challenger.
        wait_s: Time that was waited for an answer, in seconds.
        ledgers_url: Folder in which the ledger is made if the model has none yet.

    Returns:
        The report, its decision replaced.

    Raises:
        RegistryError: It is not held any more, as somebody has answered, or another one is.
    """
    reason = f"Refused, as nobody answered within {wait_s:g} s"
    held = (report.challenger_version, report.entry_digest)
    return _replace_decision(report.model_name, ledgers_url, "refused", reason, {}, *held)


def choose_labelled_rows(dataset: Dataset) -> NDArray[np.int64]:
    """Choose the readable rows of known label in the validation split, ascending.

    Raises:
        SchemaError: There is none.
    """
    labels = (Label.NORMAL, Label.ANOMALOUS)
    rows = np.sort(np.hstack([choose_rows(dataset, "validation", label) for label in labels]))
    if not len(rows):
        raise SchemaError(
            dataset.url,
            "the validation split has no readable image of known label",
            "Ingest with a larger validation share, or with labels",
        )
    return rows


def check_reproduction(model: ScoringModel, images: NDArray[np.uint8], expected: Floats) -> float:
    """Load a version in a fresh process and compare its scores with these.

    Args:
        model: The loaded version.
        images: uint8 (N, H, W, C).
        expected: float (N,), the scores that this process got.

    Returns:
        The largest relative difference.

    Raises:
        RegistryError: It does not load there, its scores differ, or its files are not those
            registered.
    """
    with verified_files(resolve(model.name, model.version)) as folder:
        found = score_in_fresh_process(folder, images)
    difference = float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1e-12)))
    if not difference <= _TOLERANCE:
        raise RegistryError(
            f"{model.name} version {model.version}",
            f"its scores differ by {difference:.2g} (relative) in a fresh process, more than "
            f"{_TOLERANCE:.0e}",
            "Train and register it again with this code",
        )
    return difference


def _compare(
    dataset: Dataset,
    rows: NDArray[np.int64],
    challenger: ScoringModel,
    champion: ScoringModel | None,
    settings: PromotionSettings,
    on_progress: Progress,
) -> Decision:
    versions = [model for model in (challenger, champion) if model is not None]
    scores = []
    for number, model in enumerate(versions):
        model.ingest.require_alike(dataset, image_shape=model.description.image_shape)

        def advance(done: int, total: int, number: int = number) -> None:
            on_progress(number * total + done, len(versions) * total)

        scores.append(score_rows(model, dataset, rows, on_progress=advance).anomaly_score)
    few = rows[np.unique(np.linspace(0, len(rows) - 1, _REPRODUCED_IMAGES).astype(int))]
    images = np.concatenate([dataset.read_images(row, row + 1) for row in few.tolist()])
    if np.isfinite(scores[0]).all():
        check_reproduction(challenger, images, scores[0][np.searchsorted(rows, few)])
    subgroups = sorted(set(SUBGROUP_COLUMNS) & set(dataset.column_names))
    columns = read_rows(dataset, ["label", "group_id", *subgroups], rows)
    decision = decide_promotion(
        scores[0],
        scores[1] if champion else None,
        columns["label"],
        settings,
        groups=columns["group_id"].astype(str),
        subgroups={name: columns[name] for name in subgroups},
        is_same_measure=champion is None or _measure_alike(challenger, champion),
    )
    if champion is None:
        return decision
    return limit_weights(decision, _count_bytes(challenger), _count_bytes(champion), settings)


def _count_bytes(model: ScoringModel) -> int:
    return sum(value.nbytes for state in model.detector.copy_weights() for value in state.values())


def _measure_alike(ours: ScoringModel, theirs: ScoringModel) -> bool:
    """Whether two versions compare images by the same features, layers and norm."""
    last = [model.description.settings.growth.final_resolution for model in (ours, theirs)]
    settings = [model.description.settings.loss for model in (ours, theirs)]
    layers = [loss.layers[at] for loss, at in zip(settings, last, strict=True)]
    same = [loss.model_copy(update={"layers": {}}) for loss in settings]
    # Statistics that each measured on its own training images are not the same features.
    is_measured = settings[0].feature_statistics == MEASURE
    same_images = ours.ingest.fingerprint == theirs.ingest.fingerprint
    return layers[0] == layers[1] and same[0] == same[1] and (same_images or not is_measured)


def _record_outcome(report: PromotionReport, state: ChampionState, run_id: str) -> Entry:
    """Write the decision into the ledger and to the challenger's run; then set the aliases.

    Raises:
        RegistryError: Another promotion has changed the champion meanwhile.
    """
    stem = f"promotion/version-{report.challenger_version}-against-{state.champion or 'none'}"
    record = f"{stem}-{report.dataset_fingerprint[:8]}.md"
    content = {**report.to_facts(), "run_id": run_id, "record": record}
    if report.decision.outcome == "promoted":
        entry = append_change(state, "promoted", report.challenger_version, content)
    else:
        entry = append(state.ledger_url, report.decision.outcome, content)
    _publish_outcome(report, state, entry)
    return entry


def _replace_decision(
    model_name: str,
    ledgers_url: str,
    outcome: Outcome,
    reason: str,
    answer: Mapping[str, JSON],
    version: str | None,
    entry_digest: str | None,
) -> PromotionReport:
    """Decide on the held challenger, unless the ledger changes meanwhile: then look again."""
    entry = None
    while entry is None:
        state = reconcile_aliases(model_name, ledgers_url)
        held = _find_held(state, version, entry_digest)
        report = _read_report(held)
        reasons = (reason, *report.decision.reasons)
        report = replace(
            report, decision=replace(report.decision, outcome=outcome, reasons=reasons)
        )
        record = str(held.content["record"]).removesuffix(".md") + "-answered.md"
        content: dict[str, JSON] = {
            **report.to_facts(),
            "run_id": held.content["run_id"],
            "record": record,
            "held_entry": held.sequence,
            "answer": dict(answer),
        }
        if outcome == "promoted":
            load_version(model_name, report.challenger_version)  # it must still be there
            content |= describe_change(state, report.challenger_version)
        entry = append_after(state.ledger_url, state.head, outcome, content)
    _publish_outcome(report, state, entry)
    return replace(report, entry_digest=entry.digest)


def _publish_outcome(report: PromotionReport, state: ChampionState, entry: Entry) -> None:
    """Keep a decision with the challenger's run and version; set the aliases by a promotion."""
    run_id, record = str(entry.content["run_id"]), str(entry.content["record"])
    log_record(run_id, record, report.to_markdown())
    log_record(run_id, record.removesuffix(".md") + ".json", report.to_facts())
    tags = {
        "promotion_outcome": report.decision.outcome,
        "promotion_reason": report.decision.reasons[0],
        "promotion_dataset": report.dataset_fingerprint,
        "promotion_record": record,
        "ledger_entry": entry.reference,
    }
    tag_version(resolve(report.model_name, report.challenger_version), tags)
    if report.decision.outcome == "promoted":
        update_aliases(report.model_name, state.ledger_url, entry)


def _find_held(state: ChampionState, version: str | None, entry_digest: str | None) -> Entry:
    """The last decision, if it holds the challenger that is asked for."""
    entries = [it for it in read_entries(state.ledger_url) if it.kind in _DECISIONS]
    if not entries or entries[-1].kind != "held":
        last = f"; the last decision: {entries[-1].kind}, {entries[-1].summary}" if entries else ""
        raise RegistryError(
            state.model_name,
            f"no challenger is held for a person{last}",
            "`normscope promote` compares a challenger, `normscope ledger` prints what was decided",
        )
    held = entries[-1]
    now = str(held.content["challenger_version"])
    if version not in (None, now) or entry_digest not in (None, held.digest):
        raise RegistryError(
            state.model_name,
            f"the answer is about version {version or now}, but entry {held.sequence} of the "
            f"ledger now holds version {now}",
            f"Read why it is held, then answer with `normscope answer --version {now}`",
        )
    return held


def _read_report(entry: Entry) -> PromotionReport:
    """Read the report that the ledger keeps with a decision."""
    names = {field.name for field in fields(PromotionReport)} & entry.content.keys()
    facts = {name: entry.content[name] for name in names}
    return TypeAdapter(PromotionReport).validate_python(facts)
