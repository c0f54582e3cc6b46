"""Readers' verdicts, exported from worklists, to a table of labels for the next search."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import SourceError
from pipeline.io import storage
from pipeline.records import Label

# An artefact is neither a normal image to learn from nor a finding to be found.
_LABELS: Final = {
    "normal": Label.NORMAL,
    "abnormal": Label.ANOMALOUS,
    "artefact": Label.UNKNOWN,
}
_FIELDS: Final = ("path", "label", "group", "verdict", "decided_at", "model")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Verdict(_Frozen):
    """What a reader said of an image; scores are those that the reader saw."""

    image_id: str
    group_id: str
    verdict: Literal["normal", "artefact", "abnormal"]
    decided_at: str
    anomaly_score: float
    percentile: float


class VerdictFile(_Frozen):
    """What a worklist exports."""

    normscope_verdicts: Literal[1]
    model_name: str
    model_version: str
    run_id: str
    source: str
    dataset_fingerprint: str
    exported_at: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class FeedbackReport:
    """The outcome of taking verdicts in.

    Args:
        table_url: The table of labels.
        taken: Verdicts of the files.
        revised: Images of which something else had been said.
        counts: Verdict -> images in the table.
    """

    table_url: str
    taken: int
    revised: tuple[str, ...]
    counts: dict[str, int]


def take_feedback(files: Sequence[str], table_url: str) -> FeedbackReport:
    """Take exported verdicts into a table; of several on one image the latest counts.

    The table has `path`, `label` (0, 1, or -1 for artefacts) and `group`, as `ingest images
    --labels` reads it. Taken in again, the same files change nothing.

    Args:
        files: URLs of exported JSON files.
        table_url: The table; what it holds already stays.

    Raises:
        SourceError: A file is no export of a worklist.
    """
    rows = _read_table(table_url)
    revised, taken = set(), 0
    for url in files:
        whole = _read_verdicts(url)
        for verdict in whole.verdicts:
            taken += 1
            before = rows.get(verdict.image_id)
            if before is not None and before["decided_at"] > verdict.decided_at:
                continue
            if before is not None and before["verdict"] != verdict.verdict:
                revised.add(verdict.image_id)
            rows[verdict.image_id] = {
                "path": verdict.image_id,
                "label": str(int(_LABELS[verdict.verdict])),
                "group": verdict.group_id,
                "verdict": verdict.verdict,
                "decided_at": verdict.decided_at,
                "model": f"{whole.model_name} version {whole.model_version}",
            }
    text = StringIO()
    writer = csv.DictWriter(text, _FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    storage.write_bytes(table_url, text.getvalue().encode())
    said = [row["verdict"] for row in rows.values()]
    counts = {verdict: said.count(verdict) for verdict in _LABELS}
    return FeedbackReport(table_url, taken, tuple(sorted(revised)), counts)


def _read_verdicts(url: str) -> VerdictFile:
    try:
        return VerdictFile.model_validate_json(storage.read_bytes(url))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SourceError(
            url,
            f"no verdicts of a worklist ({place}: {first['msg']})",
            "Export them by the page's button `Export verdicts`",
        ) from error


def _read_table(url: str) -> dict[str, dict[str, str]]:
    if not storage.exists(url):
        return {}
    reader = csv.DictReader(StringIO(storage.read_bytes(url).decode(), newline=""))
    if tuple(reader.fieldnames or ()) != _FIELDS:
        raise SourceError(
            url,
            f"has the columns {reader.fieldnames}, not {list(_FIELDS)}",
            "Name a table that `normscope feedback` has made, or a new one",
        )
    return {row["path"]: row for row in reader}
