"""`normscope remove`: a patient or a slide leaves a dataset, with an entry in its ledger.

A plain function and no flow: a server of Prefect would keep the id that is to be erased.
"""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from pipeline.errors import SettingsError
from pipeline.images.ingest import write_review
from pipeline.ingest.remove import Kind, Removal, apply_removal, clean_removal, plan_removal
from pipeline.io import storage
from pipeline.records import JSON
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.layout import LEDGER
from training.registry.ledger import Entry, append, read_entries

_UNTOUCHED: Final = (
    "Not touched, and for you to look after: the source files (a later ingest of them brings the "
    "images back: delete them first); scores, worklists and heatmaps made from this dataset; "
    "models trained on it; copies and backups of the dataset, and old versions that a bucket keeps."
)


def remove(
    dataset: str,
    *,
    patient: str | None = None,
    slide: str | None = None,
    name: str,
    reason: str,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Remove a patient or a slide from a sealed dataset, e.g. because a consent was withdrawn.

    Slides are parts of their own and go as a whole; parts of images that others share are written
    again without the images that go. Then the dataset is sealed with another fingerprint, and
    their pixels, review pictures, duplicates and entries of the manifest are deleted. Other parts
    are not touched, and no source is read. The dataset's ledger, in its folder `ledger/`, records
    who removed what, when and why. Interrupted, the same command finishes the work.

    Args:
        dataset: Path or `s3://` URL of the dataset.
        patient: Id of the patient, exactly as the dataset has it (`group_id`). Under privacy this
            is the pseudonym.
        slide: Id of the slide, exactly as the dataset has it.
        name: Name of the person who removes, for the ledger.
        reason: Reason, for the ledger. Name no patient in it: the ledger is kept.
        dry_run: Say what would go, and change nothing.
    """
    if (patient is None) == (slide is None):
        raise SettingsError(
            "remove", "takes one patient or one slide", "Give --patient ID or --slide ID"
        )
    for option, said in (("--name", name), ("--reason", reason)):
        if not said.strip():
            raise SettingsError(option, "is empty", "Say who removes and why, for the ledger")
    kind: Kind = "patient" if patient is not None else "slide"
    wanted = str(patient if patient is not None else slide)
    removal = plan_removal(dataset, kind, wanted)
    pending = _find_pending(removal)
    if not removal.rows and pending is None:
        raise SettingsError(
            removal.url,
            f"no {kind} {wanted!r} in this dataset",
            "Give the id as the dataset has it: `open_dataset(url).parts` names slides, its column "
            "`group_id` patients",
        )
    print(_describe(removal, is_dry=dry_run))
    if dry_run:
        return
    entry = remove_recorded(removal, pending, name=name, reason=reason)
    print(f"  ledger     entry {entry.sequence}, {entry.url}\n{_UNTOUCHED}")


def remove_recorded(removal: Removal, pending: Entry | None, *, name: str, reason: str) -> Entry:
    """Remove, and record it before and after.

    Args:
        removal: Rows to remove; without a row, what an interrupted removal has left is deleted.
        pending: Entry of an interrupted removal of the same id; None where there is none.
        name: Name of the person who removes.
        reason: Reason of the removal.

    Returns:
        The last entry in the dataset's ledger.
    """
    ledger = storage.join(removal.url, LEDGER)
    content: dict[str, JSON] = {
        "what": removal.kind,
        "id": removal.name,
        "name": name,
        "reason": reason,
        "image_count": removal.image_count,
        "parts_gone": removal.gone_count,
        "parts_changed": removal.changed_count,
        "fingerprint_before": removal.fingerprint,
    }
    if pending is None or (removal.rows and pending.content != content):
        pending = append(ledger, "removing", content)
    fingerprint = apply_removal(removal) if removal.rows else removal.fingerprint
    clean_removal(removal.url, _refresh_review)
    return append(ledger, "removed", {**pending.content, "fingerprint_after": fingerprint})


def _find_pending(removal: Removal) -> Entry | None:
    """Find the entry of a removal of the same id that has begun and not ended."""
    entries = read_entries(storage.join(removal.url, LEDGER))
    own = [
        entry
        for entry in entries
        if (entry.content.get("what"), entry.content.get("id")) == (removal.kind, removal.name)
    ]
    return own[-1] if own and own[-1].kind == "removing" else None


def _refresh_review(dataset: Dataset) -> None:
    if "perceptual_hash" in dataset.column_names:  # else no ingest of images has made it
        write_review(dataset)


def _describe(removal: Removal, *, is_dry: bool) -> str:
    whole = len(open_dataset(removal.url).parts)
    verb = "would remove" if is_dry else "removes"
    lines = [f"{removal.url}: {verb} {removal.kind} {removal.name}."]
    if not removal.rows:
        return "\n".join([*lines, "  An interrupted removal has left objects; they go now."])
    lines += [
        f"  images     {removal.image_count} go, {removal.left_count} stay",
        f"  parts      {removal.gone_count} go, {removal.changed_count} are written again, "
        f"{whole - len(removal.rows)} stay as they are",
    ]
    if removal.changed_count:
        lines.append(
            f"  next       ingest reads the files of the {removal.changed_count} parts again"
        )
    return "\n".join(lines)
