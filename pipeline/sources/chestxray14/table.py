"""What the rows of ChestX-ray14's table mean: labels, columns, and which of them are wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pipeline.dicom.header import parse_age
from pipeline.errors import SettingsError
from pipeline.records import Label, ManifestEntry, Scalar, SourceImage, Split
from pipeline.sources.listing import ImageFile, TableMatch
from pipeline.sources.tables import fold_title, parse_sex

Views: TypeAlias = Literal["PA", "AP", "all"]
VIEW_POSITIONS: Final = frozenset({"PA", "AP"})
NO_FINDING: Final = "No Finding"
FINDINGS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
# The later releases of the data set say `Infiltrate` in their boxes.
_OFFICIAL: Final = {
    **{fold_title(name): name for name in (NO_FINDING, *FINDINGS)},
    "infiltrate": "Infiltration",
}
_WORDS: Final = frozenset(_OFFICIAL.values())
_KNOWN: Final = frozenset(FINDINGS)

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("Image Index",),
    "findings": ("Finding Labels",),
    "patient": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}


@dataclass(frozen=True)
class RadiographRows:
    """Meaning of the table's rows, given the files and filters.

    Args:
        files: File name -> image file.
        boxes: Image name -> its boxes as text, from `boxes.read_boxes`.
        lists: Image name -> official split.
        views: View position to keep, or `all`.
        findings: Findings to keep anomalous images of; empty keeps all.
        experiment: Image name -> label and split, or None for the table's and the lists'.
    """

    files: Mapping[str, ImageFile]
    boxes: Mapping[str, str]
    lists: Mapping[str, Split]
    views: Views
    findings: frozenset[str]
    experiment: Mapping[str, tuple[Label, Split]] | None

    def match(self, rows: Sequence[Mapping[str, str]], table_url: str) -> TableMatch:
        """Match every row of the table with its image."""
        matched = TableMatch(table_url)
        unwanted: Counter[str] = Counter()
        for row in rows:
            name = row["image"]
            if not name or "/" in name or "\\" in name or name in {".", ".."}:
                matched.refuse(name, "not a plain file name")
            elif reason := self._reason_to_skip(row):
                unwanted[reason] += 1
                matched.named.add(name)
            elif name not in self.files:
                matched.absent.append(name)
            else:
                self._add_row(matched, row)
        matched.rejected += [
            ManifestEntry(table_url, "skipped", f"{count} rows: {reason}")
            for reason, count in sorted(unwanted.items())
        ]
        return matched

    def _reason_to_skip(self, row: Mapping[str, str]) -> str | None:
        if self.experiment is not None and row["image"] not in self.experiment:
            return "not in the experiment's lists"
        if self.views not in {"all", row["view"].upper()}:
            return f"the view position is not {self.views}"
        found = _split_findings(row["findings"])
        if self.findings and found != [NO_FINDING] and not self.findings.intersection(found):
            return f"none of {', '.join(sorted(self.findings))} is among the findings"
        return None

    def _add_row(self, matched: TableMatch, row: Mapping[str, str]) -> None:
        name, view, age = row["image"], row["view"].upper(), row.get("age", "")
        if not row["patient"]:
            matched.refuse(name, "no patient")
            return
        if view not in VIEW_POSITIONS:
            matched.ignore_cell(name, "View Position", row["view"])
        if "age" in row and parse_age(age) < 0:
            matched.ignore_cell(name, "Patient Age", age)
        found = _split_findings(row["findings"])
        if not found or not _WORDS.issuperset(found):
            matched.ignore_cell(name, "Finding Labels", row["findings"])
        columns: dict[str, Scalar] = {
            "view_position": view if view in VIEW_POSITIONS else "",
            "age_years": parse_age(age),
            "sex": parse_sex(row.get("sex", "")),
            "findings": "|".join(found),
        }
        if self.boxes:
            columns["boxes_yxhw"] = self.boxes.get(name, "")
        file = self.files[name]
        label, split = _label_of(found), self.lists.get(name)
        if self.experiment is not None:
            label, split = self.experiment[name]
        matched.add(
            name,
            SourceImage(
                name,
                row["patient"],
                file.url,
                file.version,
                label,
                split,
                columns,
                file.name,
                file.span_bytes,
            ),
        )


def check_findings(findings: Sequence[str]) -> frozenset[str]:
    """The official names of some findings.

    Raises:
        SettingsError: There is no such finding.
    """
    by_folded = {folded: name for folded, name in _OFFICIAL.items() if name != NO_FINDING}
    for name in findings:
        if fold_title(name) not in by_folded:
            raise SettingsError(
                "findings", f"no finding {name!r} in ChestX-ray14", f"Use {', '.join(FINDINGS)}"
            )
    return frozenset(by_folded[fold_title(name)] for name in findings)


def _split_findings(cell: str) -> list[str]:
    """Findings of a cell by their official names; words that are none stay as they are."""
    parts = [part.strip() for part in cell.split("|")]
    return [_OFFICIAL.get(fold_title(part), part) for part in parts if part]


def _label_of(findings: Sequence[str]) -> Label:
    """Normal for no finding alone, anomalous for any that is known, else unknown."""
    if list(findings) == [NO_FINDING]:
        return Label.NORMAL
    return Label.ANOMALOUS if _KNOWN.intersection(findings) else Label.UNKNOWN
