"""Plan -> write shards -> seal: the one way in which any dataset is made.

A plan fixes every image's place first. Then each task makes one whole shard, and nothing else
writes there. A shard is made again only if its key of work has changed: the versions of its
sources, the reader and its parameters, the rows, the code. The root document is written last and
seals the dataset; whoever is killed before leaves an unsealed one, and a rerun finishes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, Self

import numpy as np

from pipeline.errors import SchemaError, SourceError, StorageError
from pipeline.ingest.manifest import account_for, write_manifest
from pipeline.ingest.plan import Plan, Reader
from pipeline.ingest.preflight import check_before_spending
from pipeline.ingest.quarantine import make_without_deadly
from pipeline.ingest.several_sizes import ShardWork, cut_groups, make_group
from pipeline.ingest.shards import Commit, cut_shards
from pipeline.io import storage
from pipeline.records import ManifestEntry, Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import JSON, open_dataset, write_documents
from pipeline.store.layout import (
    MANIFEST,
    drop_arrays,
    is_laid_out,
    lacks_dataset,
    require_destination,
    sweep,
    write_changed,
)


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest.

    Args:
        url: Of the sealed dataset.
        fingerprint: Of its content and parameters.
        image_count: Rows, unreadable ones included.
        unreadable_count: Rows marked unreadable.
        shards_made: Shards written by this run.
        shards_kept: Shards that an earlier run had made from the same input.
        manifest: What became of every item.
        seconds: Wall time, of all datasets that were made together.
    """

    url: str
    fingerprint: str
    image_count: int
    unreadable_count: int
    shards_made: int
    shards_kept: int
    manifest: tuple[ManifestEntry, ...]
    seconds: float

    @property
    def failures(self) -> tuple[ManifestEntry, ...]:
        """The items that failed."""
        return tuple(entry for entry in self.manifest if entry.state == "failed")


@dataclass(frozen=True)
class Target:
    """A dataset to be made.

    Args:
        url: Where.
        plan: What to write.
        reader: How to read it.
    """

    url: str
    plan: Plan
    reader: Reader[Any]


@dataclass(frozen=True)
class _Draft:
    """A dataset on its way: the shards that it has, and those that it lacks.

    It `is_changed` where it lacks some, or an earlier run has made more.
    """

    target: Target
    commits: dict[int, Commit]
    pending: tuple[ShardWork, ...]
    documents: Mapping[str, bytes]
    is_changed: bool

    @classmethod
    def begin(cls, target: Target) -> Self:
        """Look what an earlier run has left."""
        url, reader = target.url, target.reader
        require_destination(url)
        _require_images(url, target.plan)
        before = _read_commits(url)
        tasks = list(cut_shards(target.plan, reader))
        commits = {
            task.shard: before[task.shard]
            for task in tasks
            if task.shard in before and before[task.shard].key == task.key
        }
        pending = [ShardWork(url, reader, task) for task in tasks if task.shard not in commits]
        documents = write_documents(target.plan.spec, None)
        is_changed = bool(pending) or not is_laid_out(url, documents)
        return cls(target, commits, tuple(pending), documents, is_changed)

    def lay_out(self) -> None:
        """Declare the arrays, so that shards can be written."""
        if self.is_changed:
            drop_arrays(self.target.url, self.documents)
            write_changed(self.target.url, self.documents)

    def seal(self, began: float) -> IngestReport:
        """Finish the dataset, whose shards are all there."""
        url, plan = self.target.url, self.target.plan
        if self.is_changed:
            sweep(url, self.documents, plan.spec.shard_count)
        ordered = [self.commits[shard] for shard in range(plan.spec.shard_count)]
        fingerprint = _seal(url, plan, ordered)
        unreadable = dict(pair for commit in ordered for pair in commit.unreadable)
        told = {name: open_dataset(url).column(name) for name in plan.told}
        entries = account_for(plan.sources, plan.source_index, unreadable, plan.rejected, told)
        manifest = tuple(_add_note(entry, plan.notes or {}) for entry in entries)
        report = IngestReport(
            url,
            fingerprint,
            plan.spec.image_count,
            len(unreadable),
            len(self.pending),
            len(ordered) - len(self.pending),
            manifest,
            time.monotonic() - began,
        )
        write_manifest(storage.join(url, MANIFEST), manifest, sealed_at=datetime.now(UTC))
        return report


def ingest(
    url: str,
    plan: Plan,
    reader: Reader[Any],
    map_work: MapWork,
    *,
    on_progress: Progress = ignore_progress,
) -> IngestReport:
    """Write and seal a dataset; run again after any interruption to finish it.

    Args:
        url: Of the dataset.
        plan: What to write.
        reader: How to read it.
        map_work: An engine of `pipeline.runtime.engines`.
        on_progress: Called with images done and in all.

    Raises:
        StorageError: The destination cannot be written.
        SourceError: The plan is empty.
        SettingsError: Something else lies at the destination, or a shard needs more memory than a
            worker has.
    """
    target = Target(url, plan, reader)
    (report,) = ingest_together([target], map_work, on_progress=on_progress)
    return report


def ingest_together(
    targets: Sequence[Target], map_work: MapWork, *, on_progress: Progress = ignore_progress
) -> tuple[IngestReport, ...]:
    """Write and seal datasets of the same images, decoding each source once for all of them.

    Each is what `ingest` alone would make of it, byte for byte.

    Args:
        targets: Datasets whose plans have the same sources in the same order. Where they are
            several, their readers are `SharingReader`s that decode alike.
        map_work: An engine of `pipeline.runtime.engines`.
        on_progress: Called with images done and in all, of all datasets.

    Raises:
        NormscopeError: As `ingest`.
    """
    began = time.monotonic()
    drafts = {target.url: _Draft.begin(target) for target in targets}
    works = [work for draft in drafts.values() for work in draft.pending]
    groups = cut_groups(works)
    if groups:
        check_before_spending(groups, map_work)
    for draft in drafts.values():
        draft.lay_out()
    lacking = {(work.url, work.task.shard): len(work.task.source_index) for work in works}
    total = sum(target.plan.spec.image_count for target in targets)
    on_progress(total - sum(lacking.values()), total)
    for made in map_work(make_group, groups, give_up=partial(make_without_deadly, map_work)):
        for url, commit in made:
            drafts[url].commits[commit.shard] = commit
            del lacking[url, commit.shard]
        on_progress(total - sum(lacking.values()), total)
    return tuple(draft.seal(began) for draft in drafts.values())


def _require_images(url: str, plan: Plan) -> None:
    """Refuse an empty plan; what became of every item is told where no dataset stands."""
    if plan.spec.image_count:
        return
    told, remedy = "nothing was listed", "Check the source's URL and filters"
    if plan.rejected:
        first, count = plan.rejected[0], len(plan.rejected)
        told = f"none of {count} items gives one, e.g. {first.item}: {first.reason}"
        if lacks_dataset(url):
            manifest = storage.join(url, MANIFEST)
            write_manifest(manifest, plan.rejected, ended_at=datetime.now(UTC))
            remedy = f"{manifest} names them all"
    raise SourceError(url, f"no image to write ({told})", remedy)


def _add_note(entry: ManifestEntry, notes: Mapping[str, str]) -> ManifestEntry:
    note = notes.get(entry.item) if entry.state == "done" else None
    return replace(entry, reason="; ".join(filter(None, [entry.reason, note]))) if note else entry


def _read_commits(url: str) -> dict[int, Commit]:
    """Commits of earlier runs; none where there is no dataset of this schema."""
    try:
        texts = open_dataset(url, allow_unsealed=True).read_commits()
    except SchemaError:
        return {}
    return {shard: Commit.from_json(shard, text) for shard, text in enumerate(texts) if text}


def _seal(url: str, plan: Plan, commits: Sequence[Commit]) -> str:
    """Write the sealed root document and return the fingerprint.

    Raises:
        StorageError: A shard is not what it was made as: another ingest writes here too, e.g. the
            workers of one that was killed.
    """
    found = _read_commits(url)
    foreign = [commit.shard for commit in commits if found.get(commit.shard) != commit]
    if foreign:
        raise StorageError(
            url, f"shard {foreign[0]} has been written by another ingest", "Run again"
        )
    identity = {
        key: value for key, value in plan.spec.attributes().items() if key != "code_version"
    }
    digests: list[JSON] = [commit.digest for commit in commits]
    facts = {**identity, "shard_images": plan.spec.shard_images, "shards": digests}
    fingerprint = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    unreadable = [row for commit in commits for row, _ in commit.unreadable]
    seal: dict[str, JSON] = {
        "fingerprint": fingerprint,
        "coverage": settle_coverage(plan, unreadable),
        "unreadable_count": len(unreadable),
    }
    write_changed(url, write_documents(plan.spec, seal))
    return fingerprint


def settle_coverage(plan: Plan, unreadable: Sequence[int]) -> dict[str, dict[str, float]]:
    """Move the area of unreadable rows from `tiled` to `unreadable`, group by group.

    Args:
        plan: With the account as planned.
        unreadable: Rows of the dataset.

    Returns:
        The account, whose parts still add up to what they did; empty where none was planned.
    """
    account = {
        group: {"unreadable": 0.0, **parts} for group, parts in (plan.coverage or {}).items()
    }
    if plan.weight is None:
        return account
    for row in unreadable:
        parts = account[str(plan.columns["group_id"][row])]
        area = float(np.float64(plan.weight[row]))
        parts["tiled"] -= area
        parts["unreadable"] += area
    return account
