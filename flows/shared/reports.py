"""Reports of the flows: the same text on the terminal and as a Prefect artifact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Final, TypeVar

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from flows.shared.metrics import announce_work
from pipeline.export.tiles import ExportReport
from pipeline.images.ingest import ImageIngestReport
from pipeline.ingest.estimate import Estimate
from pipeline.ingest.run import IngestReport
from pipeline.io.storage import join
from pipeline.records import ManifestEntry
from training.presets import write_sums
from training.registry.champion import LedgerReport, RollbackReport
from training.registry.lineage import Lineage
from training.registry.promotion import PromotionReport
from training.score import ScoreReport
from training.search import SearchResult
from training.train import TrainedModel
from training.worklist.verdicts import FeedbackReport

R = TypeVar("R")


@dataclass(frozen=True)
class ModalityOutcome:
    """What the demo made of one kind of scans."""

    name: str
    ingested: IngestReport
    promotion: PromotionReport
    scored: ScoreReport


@dataclass(frozen=True)
class EstimateReport:
    """What an ingest would do and cost, for each dataset that it would make."""

    estimates: tuple[Estimate, ...]


_NAMED: Final = 20  # failures that a report names; the manifest has them all


def publish(report: R) -> R:
    """Keep a report as an artifact of the flow run and its figures as an event; hand it on.

    Args:
        report: Report of a type that `to_markdown` knows.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow is not None:
        create_markdown_artifact(to_markdown(report), key=context.flow.name)
        announce_work(report)
    return report


@singledispatch
def to_markdown(report: Any) -> str:
    """A report in Markdown.

    Raises:
        TypeError: No function is registered for its type.
    """
    raise TypeError(f"no Markdown for {type(report).__name__}: register it in {__name__}")


@singledispatch
def count_failures(report: Any) -> int:  # noqa: ARG001 -- dispatches on it
    """How many items of a batch failed."""
    return 0


def _list_failures(entries: Sequence[ManifestEntry], manifest_url: str) -> list[str]:
    failed = [entry for entry in entries if entry.state == "failed"]
    lines = [f"- {e.item}: {e.reason.removeprefix(f'{e.item}: ')}" for e in failed[:_NAMED]]
    if len(failed) > _NAMED:
        lines.append(f"- and {len(failed) - _NAMED} more in {manifest_url}")
    return ["", "**Failed**", "", *lines] if lines else []


@to_markdown.register
def _(report: IngestReport) -> str:
    counts = Counter(entry.state for entry in report.manifest)
    items = ", ".join(f"{counts[state]} {state}" for state in ("done", "skipped", "failed"))
    lines = [
        f"**Dataset** `{report.url}` is sealed.",
        "",
        f"- {report.image_count} images, {report.unreadable_count} of them unreadable",
        f"- items: {items}",
        f"- {report.parts_made} parts made, {report.parts_kept} kept, {report.seconds:.1f} s",
        f"- fingerprint `{report.fingerprint[:16]}`",
    ]
    return "\n".join([*lines, *_list_failures(report.manifest, f"{report.url}/manifest.json")])


@to_markdown.register
def _(report: ImageIngestReport) -> str:
    lines = ["**To look at before training**", "", *[f"- {x}" for x in report.describe_review()]]
    first = "\n".join([to_markdown.dispatch(IngestReport)(report), "", *lines])
    return "\n\n".join([first, *map(to_markdown, report.further)])


@count_failures.register
def _(report: IngestReport) -> int:
    return len(report.failures)


@count_failures.register
def _(report: ImageIngestReport) -> int:
    # One file that fails at several sizes is one.
    return len({e.item for each in (report, *report.further) for e in each.failures})


@to_markdown.register
def _(report: ExportReport) -> str:
    counts = Counter(entry.state for entry in report.manifest)
    slides = ", ".join(f"{counts[state]} {state}" for state in ("done", "skipped", "failed"))
    lines = [
        f"**Tiles** `{report.output_url}` as {report.export_format}.",
        "",
        f"- {report.tile_count} tiles; slides: {slides}",
    ]
    return "\n".join([*lines, *_list_failures(report.manifest, report.output_url)])


@count_failures.register
def _(report: ExportReport) -> int:
    return len(report.failures)


@to_markdown.register
def _(report: TrainedModel) -> str:
    auroc = (
        "no labelled anomalies"
        if report.validation_auroc is None
        else (f"{report.validation_auroc:.3f}")
    )
    return "\n".join(
        [
            f"**Model** `{report.name}` version {report.version} is registered as challenger.",
            "",
            f"- AUROC on the validation split: {auroc}",
            f"- threshold {report.threshold:.4g}, run `{report.run_name}` (`{report.run_id}`)",
            f"- next: `normscope promote {report.name} DATASET`",
        ]
    )


@to_markdown.register
def _(report: PromotionReport) -> str:
    return report.to_markdown()


@to_markdown.register
def _(report: RollbackReport) -> str:
    return (
        f"**Model** `{report.model_name}`: version {report.champion} is champion again, "
        f"version {report.withdrawn or '(deleted)'} is not.\n\n- {report.reason}\n"
        f"- entry {report.entry.sequence} of the ledger, `{report.entry.digest[:16]}`"
    )


@to_markdown.register
def _(report: LedgerReport) -> str:
    lines = [
        f"**Ledger** `{report.ledger_url}`: {len(report.entries)} entries, every link verified.",
        "",
        f"- champion: {f'version {report.champion}' if report.champion else 'none'}",
        *(
            [f"- the ledger says version {report.recorded_champion}: `promote` reconciles both"]
            if report.recorded_champion != report.champion
            else []
        ),
        "",
        "| | when | what | | digest |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {entry.sequence} | {entry.at} | {entry.kind} | {entry.summary} | "
        f"`{entry.digest[:12]}` |"
        for entry in report.entries
    ]
    return "\n".join(lines)


@to_markdown.register
def _(report: Lineage) -> str:
    score = report.score
    lines = [
        f"**{report.image_id}**: score {score['anomaly_score']:.6g}, percentile "
        f"{score['percentile']:.1f}, scored {score['scored_at']:%Y-%m-%d %H:%M} UTC",
        "",
        *(f"- model, {name}: `{value}`" for name, value in report.model.items()),
        *(f"- scored dataset, {name}: `{value}`" for name, value in report.scored_dataset.items()),
        *(
            f"- ledger, entry {entry.sequence}: {entry.at} {entry.kind}, {entry.summary} "
            f"(`{entry.digest[:12]}`)"
            for entry in report.entries
        ),
        *(f"- missing: {gap}" for gap in report.gaps),
    ]
    return "\n".join(lines)


@to_markdown.register
def _(report: FeedbackReport) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts.items())
    lines = [
        f"**Labels** `{report.table_url}`: {counts}.",
        "",
        f"- {report.imported} verdicts taken in; of {len(report.revised)} images something else "
        "had been said",
        f"- next: `normscope ingest images FOLDER DATASET --labels {report.table_url}`",
    ]
    return "\n".join(lines)


@to_markdown.register
def _(report: ScoreReport) -> str:
    lines = [
        f"**Worklist** `{report.worklist_url}`",
        "",
        f"- {report.scored_count} images scored by `{report.model_name}` version "
        f"{report.model_version}, {report.new_count} of them now, in {report.seconds:.1f} s",
        f"- {report.anomalous_count} of them over the threshold {report.threshold:.4g}",
    ]
    if report.auroc is not None:
        lines.append(f"- AUROC {report.auroc}")
    lines += [f"- {note}" for note in report.notes]
    if report.moved is not None:
        lines += ["", "**What moved in the ranking**", "", report.moved.to_markdown()]
    manifest = join(report.output_url, "manifest.json")
    return "\n".join([*lines, *_list_failures(report.failures, manifest)])


@count_failures.register
def _(report: ScoreReport) -> int:
    return len(report.failures)


@to_markdown.register(tuple)
def _(outcomes: tuple[ModalityOutcome, ...]) -> str:
    lines = ["| | images | AUROC on planted anomalies | champion |", "|---|---|---|---|"]
    lines += [
        f"| {outcome.name} | {outcome.ingested.image_count} | {outcome.scored.auroc} | "
        f"{outcome.scored.model_name} version {outcome.scored.model_version} |"
        for outcome in outcomes
    ]
    lines += ["", "The feature extractor is random: this shows that the chain works, no more.", ""]
    for outcome in outcomes:
        lines.append(f"- dataset `{outcome.ingested.url}`")
        lines.append(f"- worklist `{outcome.scored.worklist_url}`")
    return "\n".join(lines)


@to_markdown.register
def _(report: SearchResult) -> str:
    best = report.best
    rows = [
        f"| {trial.choice['learning_rate']:.2g} | {trial.choice['latent_channels']} "
        f"| {trial.choice['final_layer']} "
        f"| {trial.problem or 'failed' if trial.auroc is None else f'{trial.auroc:.3f}'} |"
        for trial in report.trials
    ]
    return "\n".join(
        [
            f"**Search** run `{report.run_id}`, the best first.",
            "",
            "| learning rate | latent channels | final layer | validation AUROC |",
            "|---|---|---|---|",
            *rows,
            "",
            "To train with the best, add to `normscope train`:",
            "",
            f"    --train.optimiser.learning-rate {best.optimiser.learning_rate:.6g}",
            f"    --train.network.latent-channels {best.network.latent_channels}",
            f"    --train.loss.layers {' '.join(write_sums(best))}",
        ]
    )


@to_markdown.register
def _(report: EstimateReport) -> str:
    return "\n\n".join(map(_describe_estimate, report.estimates))


def _describe_estimate(found: Estimate) -> str:
    counts = ", ".join(f"{found.counts[fate]} {fate}" for fate in ("new", "changed", "kept"))
    about = "" if found.is_exact else "about "
    needs = "fits" if found.fits else "too little: lower shard_images or give workers more"
    images = "unknown" if found.image_count is None else f"{about}{found.image_count}"
    minutes = "unknown" if found.seconds is None else f"about {found.seconds / 60:.1f}"
    objects = "unknown" if found.object_count is None else f"about {found.object_count}"
    rows = {
        found.unit: f"{counts}; {found.removed_count} gone from the source",
        "images to make": images,
        "bytes to read": _write_mib(found.read_bytes),
        "bytes to store": _write_mib(found.stored_bytes),
        "objects to write": objects,
        "minutes": f"{minutes}; workers: {found.worker_count}",
        "memory of a worker": f"{found.needed_bytes >> 20} MiB needed, "
        f"{found.memory_bytes >> 20} MiB there: {needs}",
    }
    lines = [
        f"**Dry run** for `{found.url}`: nothing was written.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        f"From a sample of {found.sampled_count}. The minutes leave out fetching from S3 and "
        "writing to storage. What a visit finds in the bytes themselves may differ.",
    ]
    return "\n".join([*lines, *_list_rejected(found.rejected)])


def _write_mib(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else f"about {size_bytes / 2**20:.1f} MiB"


def _list_rejected(entries: Sequence[ManifestEntry]) -> list[str]:
    """List what could not be used, as far as a dry run has seen it."""
    lines = [f"- {e.item}: {e.reason.removeprefix(f'{e.item}: ')}" for e in entries[:_NAMED]]
    if len(entries) > _NAMED:
        lines.append(f"- and {len(entries) - _NAMED} more")
    return ["", "**Would not be used**", "", *lines] if lines else []
