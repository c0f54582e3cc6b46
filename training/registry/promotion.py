"""The gate between challenger and champion: scores on one sealed split decide, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RegistryError, SchemaError
from pipeline.records import Label, Progress, ignore_progress
from pipeline.store.dataset import Dataset, open_dataset
from training.evaluation.subgroups import SUBGROUP_COLUMNS
from training.registry.champion import (
    ChampionState,
    append_change,
    reconcile_aliases,
    update_aliases,
)
from training.registry.footprint import measure_footprints
from training.registry.fresh_process import score_in_fresh_process
from training.registry.gate import (
    Decision,
    Floats,
    PromotionSettings,
    decide_promotion,
    limit_footprint,
)
from training.registry.ledger import Entry, append
from training.registry.versions import (
    CHALLENGER,
    load_version,
    log_record,
    resolve,
    tag_version,
    tracking_uri,
)
from training.scoring.kept_scores import score_rows
from training.scoring.loaded_model import ScoringModel
from training.settings import MEASURE

_REPRODUCED_IMAGES: Final = 8
_TOLERANCE: Final = 1e-5  # relative; another process may split its work among threads otherwise


@dataclass(frozen=True)
class PromotionReport:
    """The outcome of a promotion.

    Args:
        model_name: Registered name.
        challenger_version: The version that asked.
        champion_version: The version that was champion before; None for the first.
        dataset_url: Whose validation split decided.
        dataset_fingerprint: Of it.
        image_count: Images that decided.
        decision: What became of the challenger, and why.
        notes: What a reader must know first.
    """

    model_name: str
    challenger_version: str
    champion_version: str | None
    dataset_url: str
    dataset_fingerprint: str
    image_count: int
    decision: Decision
    notes: tuple[str, ...]

    @property
    def has_new_champion(self) -> bool:
        """Whether the alias has moved."""
        is_promoted = self.decision.outcome == "promoted"
        return is_promoted and self.champion_version != self.challenger_version

    def to_markdown(self) -> str:
        """The record that is kept with the run."""
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


def promote(
    model_name: str,
    dataset_url: str,
    *,
    ledgers_url: str,
    settings: PromotionSettings | None = None,
    on_progress: Progress = ignore_progress,
) -> PromotionReport:
    """Let the challenger face the champion, and move the aliases if it wins.

    Args:
        model_name: Registered name.
        dataset_url: Sealed dataset, whose validation split decides.
        ledgers_url: Folder of the ledger, where the model has none yet.
        settings: What the challenger must show.
        on_progress: Called with images scored and in all, over both versions.

    Raises:
        RegistryError: There is no such model or no challenger, or it does not load, or gives
            other scores in a fresh process.
        SchemaError: The dataset was prepared otherwise than a version's, or its validation split
            has no readable image of known label.
    """
    settings = settings or PromotionSettings()
    challenger = load_version(model_name, CHALLENGER)
    state = reconcile_aliases(model_name, ledgers_url)
    champion_version = state.champion
    dataset = open_dataset(dataset_url)
    rows = choose_judges(dataset)
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
    if champion_version != challenger.version:
        _conclude(report, state, challenger.run_id)
    return report


def choose_judges(dataset: Dataset) -> NDArray[np.int64]:
    """Readable rows of known label in the validation split, ascending.

    Raises:
        SchemaError: There is none.
    """
    is_known = dataset.column("label") != Label.UNKNOWN
    is_held_out = dataset.column("split").astype(str) == "validation"
    rows = np.flatnonzero(is_known & is_held_out & dataset.column("readable"))
    if not len(rows):
        raise SchemaError(
            dataset.url,
            "the validation split has no readable image of known label",
            "Ingest with a larger validation share, or with labels",
        )
    return rows.astype(np.int64)


def check_reproduction(model: ScoringModel, images: NDArray[np.uint8], expected: Floats) -> float:
    """Load a version in a fresh process and compare its scores with these.

    Args:
        model: The version.
        images: uint8 (N, H, W, C).
        expected: float (N,), the scores that this process got.

    Returns:
        The largest relative difference.

    Raises:
        RegistryError: It does not load there, or its scores differ.
    """
    found = score_in_fresh_process(resolve(model.name, model.version).uri, tracking_uri(), images)
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
    subgroups = set(SUBGROUP_COLUMNS) & set(dataset.column_names)
    decision = decide_promotion(
        scores[0],
        scores[1] if champion else None,
        dataset.column("label")[rows],
        settings,
        groups=dataset.column("group_id")[rows].astype(str),
        subgroups={name: dataset.column(name)[rows] for name in subgroups},
        is_same_measure=champion is None or _measure_alike(challenger, champion),
    )
    if champion is None:
        return decision
    ours, theirs = measure_footprints((challenger, champion), images)
    return limit_footprint(decision, ours, theirs, settings)


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


def _conclude(report: PromotionReport, state: ChampionState, run_id: str) -> None:
    """Write the decision into the ledger and beside the challenger's run; then move the alias.

    Raises:
        RegistryError: Another promotion has moved the alias meanwhile.
    """
    champion = state.champion
    stem = f"promotion/version-{report.challenger_version}-against-{champion or 'none'}"
    path = f"{stem}-{report.dataset_fingerprint[:8]}"
    content = {**asdict(report), "run_id": run_id, "record": f"{path}.md"}
    if report.decision.outcome == "promoted":
        entry = append_change(state, "promoted", report.challenger_version, content)
    else:
        entry = append(state.ledger_url, report.decision.outcome, content)
    record_decision(report, run_id, path, entry)
    if report.decision.outcome == "promoted":
        update_aliases(state.model_name, state.ledger_url, entry)


def record_decision(report: PromotionReport, run_id: str, path: str, entry: Entry) -> None:
    """Keep a decision with the challenger's run and version.

    Args:
        report: The decision and all about it.
        run_id: The challenger's run.
        path: Among the run's artifacts, without a suffix.
        entry: Of the ledger, which says the same.
    """
    log_record(run_id, f"{path}.md", report.to_markdown())
    log_record(run_id, f"{path}.json", asdict(report))
    tags = {
        "promotion_outcome": report.decision.outcome,
        "promotion_reason": report.decision.reasons[0],
        "promotion_dataset": report.dataset_fingerprint,
        "promotion_record": f"{path}.md",
        "ledger_entry": entry.reference,
    }
    tag_version(resolve(report.model_name, report.challenger_version), tags)
