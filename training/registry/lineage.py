"""Lineage of a score: the model, run, datasets, source bytes and code behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import NormscopeError, SourceError
from pipeline.io import storage
from pipeline.store.dataset import open_dataset
from training.registry.ledger import Entry, read_entries
from training.registry.versions import LEDGER_TAG, model_tags, read_ingest, resolve, run_tags
from training.scoring.outputs import read_facts

_CODE_TAGS: Final = ("code_version", "dataset_code_version", "mlflow.source.git.commit")


@dataclass(frozen=True)
class Lineage:
    """The origin of a score.

    Args:
        image_id: Identifier of the scored image.
        score: The image's row of `scores.parquet`.
        scored_dataset: URL and fingerprint of the scored dataset, and the code that made it.
        model: Version, run, fingerprint of the training dataset, and the code of both.
        entries: Entries of the ledger about this version or these results.
        gaps: Facts that can no longer be found, in words.
    """

    image_id: str
    score: Mapping[str, Any]
    scored_dataset: Mapping[str, str]
    model: Mapping[str, str]
    entries: tuple[Entry, ...]
    gaps: tuple[str, ...]


def trace(scores_url: str, image_id: str) -> Lineage:
    """Trace a score to what it was made from.

    Args:
        scores_url: Output folder of a scoring, or its `scores.parquet`.
        image_id: Identifier of the image, as the table has it.

    Raises:
        SourceError: It has no such image.
        RegistryError: The registry does not know the model.
        StorageError: The scores cannot be read.
    """
    output = scores_url.removesuffix("/scores.parquet").rstrip("/")
    score = _find_row(storage.join(output, "scores.parquet"), image_id)
    facts = read_facts(output)
    gaps: list[str] = []
    scored_dataset = {
        "url": str(facts.get("dataset", "")),
        "fingerprint": str(facts.get("dataset_fingerprint", "")),
        "source_digest": score["source_digest"],
        "pixel_digest": score["pixel_digest"],
        "code_version": _find_code(facts, gaps),
    }
    name, version = score["model_name"], score["model_version"]
    found = resolve(name, version)
    ingest = read_ingest(found)
    tags = run_tags(score["run_id"])
    model: dict[str, str] = {
        "version": f"{name} version {version}",
        "run_id": score["run_id"],
        "training_dataset": ingest.fingerprint,
        "parameters": json.dumps(ingest.parameters, sort_keys=True),
        **{tag: tags[tag] for tag in _CODE_TAGS if tag in tags},
        **{key: tag for key, tag in found.tags.items() if "promotion" in key},
    }
    ledger_url = model_tags(name).get(LEDGER_TAG)
    entries = read_entries(ledger_url) if ledger_url else ()
    if not entries:
        gaps.append("the model has no ledger")
    results = str(facts.get("results", "")).rpartition("/")[2]
    related = tuple(entry for entry in entries if _is_about(entry, version, results))
    return Lineage(image_id, score, scored_dataset, model, related, tuple(gaps))


def _find_row(url: str, image_id: str) -> dict[str, Any]:
    file = pq.ParquetFile(BytesIO(storage.read_bytes(url)))
    for batch in file.iter_batches():
        found = batch.filter(pc.equal(batch["image_id"], image_id)).to_pylist()
        if found:
            return dict(found[0])
    problem = f"no score of an image {image_id!r} among {file.metadata.num_rows}"
    raise SourceError(url, problem, "Give the image_id as the table has it")


def _find_code(facts: Mapping[str, Any], gaps: list[str]) -> str:
    """The code that made the scored dataset, if the dataset is still what was scored."""
    try:
        dataset = open_dataset(str(facts.get("dataset", "")))
    except NormscopeError as error:
        gaps.append(f"the scored dataset cannot be opened any more ({error.problem})")
        return ""
    if dataset.fingerprint != facts.get("dataset_fingerprint"):
        gaps.append("the scored dataset has changed since: its fingerprint differs")
    return str(dataset.attributes["code_version"])


def _is_about(entry: Entry, version: str, results: str) -> bool:
    known = entry.content
    if entry.kind == "scored":
        return known.get("results") == results
    keys = ("version", "champion", "withdrawn", "challenger_version")
    return version in (known.get(key) for key in keys)
