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
from typing import Any

import numpy as np

from pipeline.errors import SchemaError, SourceError, StorageError
from pipeline.ingest.manifest import account_for, write_manifest
from pipeline.ingest.plan import Plan, Reader
from pipeline.ingest.preflight import check_before_spending
from pipeline.ingest.quarantine import make_shard_without_killers
from pipeline.ingest.shards import Commit, ShardTask, cut_shards, make_shard
from pipeline.io import storage
from pipeline.records import JSON, ManifestEntry, Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import open_dataset
from pipeline.store.layout import (
    MANIFEST,
    drop_arrays,
    is_laid_out,
    lacks_dataset,
    require_destination,
    sweep,
    sweep_temporary,
    write_changed,
)
from pipeline.store.spec import write_documents


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest.

    Args:
        url: URL of the sealed dataset.
        fingerprint: SHA-256 over the dataset's content and parameters.
        image_count: Number of rows, unreadable ones included.
        unreadable_count: Number of rows marked unreadable.
        shards_made: Number of shards written by this run.
        shards_kept: Number of shards that an earlier run had made from the same input.
        manifest: One entry for every item, with what became of it.
        seconds: Wall time in seconds.
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
        url: URL of the dataset.
        plan: The rows to write.
        reader: Reader of the plan's sources.
        map_work: An engine of `pipeline.runtime.engines`.
        on_progress: Called with the number of images done and in all.

    Raises:
        StorageError: The destination cannot be written.
        SourceError: The plan is empty.
        SettingsError: Something else lies at the destination, or a shard needs more memory than a
            worker has.
    """
    began = time.monotonic()
    url = storage.plain_url(url)
    require_destination(url)
    _require_images(url, plan)
    commits, pending = _resume(url, plan, reader)
    if pending:
        check_before_spending(url, pending, map_work)
    documents = write_documents(plan.spec, None)
    is_changed = bool(pending) or not is_laid_out(url, documents)
    if is_changed:
        drop_arrays(url, documents)
        write_changed(url, documents)
    done = plan.spec.image_count - sum(len(task.source_index) for task in pending)
    on_progress(done, plan.spec.image_count)
    give_up = partial(make_shard_without_killers, map_work, url, reader)
    for commit in map_work(partial(make_shard, url, reader), pending, give_up=give_up):
        commits[commit.shard] = commit
        done += plan.spec.count_rows(commit.shard)
        on_progress(done, plan.spec.image_count)
    if is_changed:
        sweep(url, documents, plan.spec.shard_count)
    else:
        sweep_temporary(url)
    ordered = [commits[shard] for shard in range(plan.spec.shard_count)]
    return IngestReport(
        url=url,
        fingerprint=_seal(url, plan, ordered),
        image_count=plan.spec.image_count,
        unreadable_count=sum(len(commit.unreadable) for commit in ordered),
        shards_made=len(pending),
        shards_kept=len(ordered) - len(pending),
        manifest=_write_manifest(url, plan, ordered),
        seconds=time.monotonic() - began,
    )


def _resume(url: str, plan: Plan, reader: Reader[Any]) -> tuple[dict[int, Commit], list[ShardTask]]:
    """Find the commits of an earlier run that still hold, and the shards that are lacking."""
    before = _read_commits(url)
    commits, pending = {}, []
    for task in cut_shards(plan, reader):
        commit = before.get(task.shard)
        if commit is not None and commit.key == task.key:
            commits[task.shard] = commit
        else:
            pending.append(task)
    return commits, pending


def _write_manifest(url: str, plan: Plan, commits: Sequence[Commit]) -> tuple[ManifestEntry, ...]:
    """Write what became of every item of a sealed dataset."""
    columns = {name: open_dataset(url).column(name) for name in plan.manifest_columns}
    entries = account_for(
        plan.sources,
        plan.source_index,
        dict(pair for commit in commits for pair in commit.unreadable),
        plan.rejected,
        columns,
    )
    manifest = tuple(_add_remark(entry, plan.remarks or {}) for entry in entries)
    write_manifest(storage.join(url, MANIFEST), manifest, sealed_at=datetime.now(UTC))
    return manifest


def _require_images(url: str, plan: Plan) -> None:
    """Refuse an empty plan; where there is no dataset yet, a manifest says what became of it."""
    if plan.spec.image_count:
        return
    reason, remedy = "nothing was listed", "Check the source's URL and filters"
    if plan.rejected:
        first, count = plan.rejected[0], len(plan.rejected)
        reason = f"none of {count} items gives one, e.g. {first.item}: {first.reason}"
        if lacks_dataset(url):
            manifest = storage.join(url, MANIFEST)
            write_manifest(manifest, plan.rejected, ended_at=datetime.now(UTC))
            remedy = f"{manifest} names them all"
    raise SourceError(url, f"no image to write ({reason})", remedy)


def _add_remark(entry: ManifestEntry, remarks: Mapping[str, str]) -> ManifestEntry:
    remark = remarks.get(entry.item) if entry.state == "done" else None
    if not remark:
        return entry
    return replace(entry, reason="; ".join(filter(None, [entry.reason, remark])))


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
        "coverage": _move_unreadable_area(plan, unreadable),
        "unreadable_count": len(unreadable),
    }
    write_changed(url, write_documents(plan.spec, seal))
    return fingerprint


def _move_unreadable_area(plan: Plan, unreadable: Sequence[int]) -> dict[str, dict[str, float]]:
    """Move the area of unreadable rows from `tiled` to `unreadable`, group by group.

    Returns:
        The coverage account, whose parts still add up to what they did; empty where the plan has
        none.
    """
    account = {
        group: {"unreadable": 0.0, **parts} for group, parts in (plan.coverage or {}).items()
    }
    if plan.area is None:
        return account
    for row in unreadable:
        parts = account[str(plan.columns["group_id"][row])]
        area = float(np.float64(plan.area[row]))
        parts["tiled"] -= area
        parts["unreadable"] += area
    return account
