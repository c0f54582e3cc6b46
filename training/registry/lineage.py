"""From a score back to all that it came from: model, run, datasets, source bytes, code."""

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
from training.registry.champion import LEDGER_TAG
from training.registry.ledger import Entry, read_entries
from training.registry.versions import load_version, model_tags, resolve, run_tags
from training.scoring.outputs import read_facts

_CODE_TAGS: Final = ("code_version", "dataset_code_version", "mlflow.source.git.commit")


@dataclass(frozen=True)
class Lineage:
    """What a score came from.

    Args:
        image_id: Of the image.
        score: The row of `scores.parquet`.
        scored_dataset: URL and fingerprint of what was scored, and the code that made it.
        model: Version, run, fingerprint of the dataset that it learned from, and the code of both.
        entries: Of the ledger, that speak of this version or of these results.
        gaps: What could not be found any more, in words.
    """

    image_id: str
    score: Mapping[str, Any]
    scored_dataset: Mapping[str, str]
    model: Mapping[str, str]
    entries: tuple[Entry, ...]
    gaps: tuple[str, ...]


def trace(scores_url: str, image_id: str) -> Lineage:
    """Trace a score.

    Args:
        scores_url: The output of a scoring, or its `scores.parquet`.
        image_id: Of the image.

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
        "code_version": _find_code(facts, gaps),
    }
    name, version = score["model_name"], score["model_version"]
    ingest = load_version(name, version).ingest
    tags = run_tags(score["run_id"])
    model: dict[str, str] = {
        "version": f"{name} version {version}",
        "run_id": score["run_id"],
        "training_dataset": ingest.fingerprint,
        "parameters": json.dumps(ingest.parameters, sort_keys=True),
        **{tag: tags[tag] for tag in _CODE_TAGS if tag in tags},
        **{key: tag for key, tag in resolve(name, version).tags.items() if "promotion" in key},
    }
    ledger_url = model_tags(name).get(LEDGER_TAG)
    entries = read_entries(ledger_url) if ledger_url else ()
    if not entries:
        gaps.append("the model has no ledger")
    results = str(facts.get("results", "")).rpartition("/")[2]
    speaking = tuple(entry for entry in entries if _speaks_of(entry, version, results))
    return Lineage(image_id, score, scored_dataset, model, speaking, tuple(gaps))


def _find_row(url: str, image_id: str) -> dict[str, Any]:
    table = pq.read_table(BytesIO(storage.read_bytes(url)))
    found = table.filter(pc.equal(table["image_id"], image_id)).to_pylist()
    if not found:
        problem = f"no score of an image {image_id!r} among {len(table)}"
        raise SourceError(url, problem, "Give the image_id as the table has it")
    return dict(found[0])


def _find_code(facts: Mapping[str, Any], gaps: list[str]) -> str:
    """The code that made the scored dataset, if the dataset is still what was scored."""
    try:
        dataset = open_dataset(str(facts.get("dataset", "")))
    except NormscopeError as error:
        gaps.append(f"the scored dataset cannot be opened any more ({error.problem})")
        return ""
    if dataset.fingerprint != facts.get("dataset_fingerprint"):
        gaps.append("the scored dataset has changed since; its fingerprint is now another")
    return str(dataset.attributes["code_version"])


def _speaks_of(entry: Entry, version: str, results: str) -> bool:
    known = entry.content
    if entry.kind == "scored":
        return known.get("results") == results
    return version in (known.get(key) for key in ("champion", "withdrawn", "challenger_version"))
