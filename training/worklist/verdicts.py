"""Import readers' verdicts, exported from worklists, into a table of labels."""

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
    """A reader's verdict on an image, with the scores that the page showed."""

    image_id: str
    group_id: str
    verdict: Literal["normal", "artefact", "abnormal"]
    decided_at: str
    anomaly_score: float
    percentile: float


class VerdictFile(_Frozen):
    """File that a worklist exports."""

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
    """The outcome of importing verdicts.

    Args:
        table_url: Path or URL of the table of labels.
        imported: Number of verdicts in the files.
        revised: Names of the images whose verdict has changed.
        counts: Number of images in the table by verdict.
    """

    table_url: str
    imported: int
    revised: tuple[str, ...]
    counts: dict[str, int]


def import_verdicts(files: Sequence[str], table_url: str) -> FeedbackReport:
    """Import exported verdicts into a table of labels; the latest verdict on an image counts.

    The table has `path`, `label` (0, 1, or -1 for artefacts) and `group`, as `ingest images
    --labels` reads it. Importing the same files again changes nothing.

    Args:
        files: Paths or URLs of exported JSON files.
        table_url: Path or URL of the table; its former rows stay.

    Raises:
        SourceError: A file is not an export of a worklist.
    """
    rows = _read_table(table_url)
    revised, imported = set(), 0
    for url in files:
        whole = _read_verdicts(url)
        for verdict in whole.verdicts:
            imported += 1
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
    found = [row["verdict"] for row in rows.values()]
    counts = {verdict: found.count(verdict) for verdict in _LABELS}
    return FeedbackReport(table_url, imported, tuple(sorted(revised)), counts)


def _read_verdicts(url: str) -> VerdictFile:
    try:
        return VerdictFile.model_validate_json(storage.read_bytes(url))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SourceError(
            url,
            f"not a file of verdicts ({place}: {first['msg']})",
            "Export them with the button `Export verdicts` of a worklist",
        ) from error


def _read_table(url: str) -> dict[str, dict[str, str]]:
    if not storage.exists(url):
        return {}
    reader = csv.DictReader(StringIO(storage.read_bytes(url).decode(), newline=""))
    if tuple(reader.fieldnames or ()) != _FIELDS:
        raise SourceError(
            url,
            f"has the columns {reader.fieldnames}, not {list(_FIELDS)}",
            "Name a table made by `normscope feedback`, or a new one",
        )
    return {row["path"]: row for row in reader}
