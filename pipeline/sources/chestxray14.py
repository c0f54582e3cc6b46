"""NIH ChestX-ray14 as it is published.

Wang et al., CVPR 2017; https://nihcc.app.box.com/v/ChestXray-NIHCC. Read, on disk or on S3:

    Data_Entry_2017.csv  or  Data_Entry_2017_v2020.csv      (may be gzipped)
    train_val_list.txt, test_list.txt                       (where present)
    images/00000001_000.png  or  images_001/images/00000001_000.png  or any other depth

The first table writes ages as `058Y` and ends its lines with a comma, that of 2020 writes `57`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pipeline.errors import SettingsError, SourceError
from pipeline.records import Label, ManifestEntry, Scalar, SourceImage, Split
from pipeline.sources.listings import (
    Folder,
    Gathering,
    ImageListing,
    in_order,
    is_image,
    list_folder,
    list_unlisted,
    parent_of,
    plain_url,
)
from pipeline.sources.tables import parse_age, parse_sex, read_table
from pipeline.storage import ObjectInfo, exists, join, name_of, read_bytes

Views: TypeAlias = Literal["PA", "AP", "all"]
VIEW_POSITIONS: Final = frozenset({"PA", "AP"})
NO_FINDING: Final = "No Finding"
FINDINGS: Final = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "image": ("Image Index",),
    "findings": ("Finding Labels",),
    "patient": ("Patient ID",),
    "age": ("Patient Age",),
    "sex": ("Patient Gender", "Patient Sex"),
    "view": ("View Position",),
}
# Of two tables side by side the later is taken: it corrected ages and views.
_TABLE_NAMES: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS: Final[Mapping[str, Split]] = {"train_val_list.txt": "train", "test_list.txt": "test"}


def list_radiographs(
    url: str,
    *,
    table_url: str | None = None,
    views: Views = "all",
    findings: Sequence[str] = (),
    experiment: Mapping[str, tuple[Label, Split]] | None = None,
) -> ImageListing:
    """List the radiographs below a folder or prefix.

    Label: normal where the finding is `No Finding`, else anomalous. Group: the patient. Split:
    the official lists, found beside the images or the table. Columns: `view_position`,
    `age_years`, `sex`, `findings`.

    Rows without a file are counted: a part of the data set is a common thing to have.

    Args:
        url: A folder or prefix with the images, at any depth below.
        table_url: Of the `Data_Entry_2017` table; None looks below `url` and in its parent.
        views: Those of this view position only, or `all`.
        findings: Anomalous images are kept if they have one of these; all by default.
        experiment: Image name -> label and split, from `chestxray14_experiments`; these then
            replace the table's labels and the official lists, and other images are left out.

    Raises:
        SettingsError: There is no such finding.
        SourceError: There is no image or table, the table is another one, or the lists overlap.
        StorageError: The URL cannot be read.
    """
    wanted = _check_findings(findings)
    folder = list_folder(url)
    files, doubles = _name_files(folder)
    if not files:
        raise SourceError(
            url,
            f"no image among {len(folder.files)} files",
            "Unpack the archives images_0NN.tar.gz there",
        )
    table = read_table(
        table_url or _find_table(folder),
        _COLUMNS,
        needed=("image", "findings", "patient", "view"),
        remedy="Give the official Data_Entry_2017 table as it was published",
    )
    lists = _read_lists(folder, table.url)
    rows = _Rows(files, lists, views, wanted, experiment)
    gathering = rows.gather(table.rows, table.url)
    if not gathering.images:
        raise SourceError(
            table.url,
            f"none of its {len(table.rows)} rows gives one of {len(files)} images of {url}",
            "Check that table, images and filters belong together",
        )
    unlisted = list_unlisted(
        info for name, info in sorted(files.items()) if name not in gathering.named
    )
    return ImageListing(
        in_order(gathering.images.values()),
        (*gathering.rejected, *gathering.list_absent(), *unlisted, *doubles),
        (
            f"{len(gathering.images)} of {len(table.rows)} rows of {table.url} give an image",
            f"splits: {_name_origin(experiment, lists)}",
        ),
    )


@dataclass(frozen=True)
class _Rows:
    """What the rows of the table mean.

    Args:
        files: By name.
        lists: Image name -> official split.
        views: Which are wanted.
        findings: Which are wanted, empty for all.
        experiment: Image name -> label and split, or None for the table's and the lists'.
    """

    files: Mapping[str, ObjectInfo]
    lists: Mapping[str, Split]
    views: Views
    findings: frozenset[str]
    experiment: Mapping[str, tuple[Label, Split]] | None

    def gather(self, rows: Sequence[Mapping[str, str]], table_url: str) -> Gathering:
        gathering = Gathering(table_url)
        unwanted: Counter[str] = Counter()
        for row in rows:
            name = row["image"]
            if not name or "/" in name or "\\" in name or name in {".", ".."}:
                gathering.refuse(name, "not a plain file name")
            elif reason := self._reason_to_skip(row):
                unwanted[reason] += 1
                gathering.named.add(name)
            elif name not in self.files:
                gathering.absent.append(name)
            else:
                self._take(gathering, row)
        gathering.rejected += [
            ManifestEntry(table_url, "skipped", f"{count} rows: {reason}")
            for reason, count in sorted(unwanted.items())
        ]
        return gathering

    def _reason_to_skip(self, row: Mapping[str, str]) -> str | None:
        if self.experiment is not None and row["image"] not in self.experiment:
            return "not in the experiment's lists"
        if self.views not in {"all", row["view"].upper()}:
            return f"the view position is not {self.views}"
        found = _split_findings(row["findings"])
        if self.findings and found != [NO_FINDING] and not self.findings.intersection(found):
            return f"none of {', '.join(sorted(self.findings))} is among the findings"
        return None

    def _take(self, gathering: Gathering, row: Mapping[str, str]) -> None:
        name, view, age = row["image"], row["view"].upper(), row.get("age", "")
        if not row["patient"]:
            gathering.refuse(name, "no patient")
            return
        if view not in VIEW_POSITIONS:
            gathering.ignore_cell(name, "View Position", row["view"])
        if "age" in row and parse_age(age) < 0:
            gathering.ignore_cell(name, "Patient Age", age)
        found = _split_findings(row["findings"])
        if not found:
            gathering.ignore_cell(name, "Finding Labels", row["findings"])
        columns: dict[str, Scalar] = {
            "view_position": view if view in VIEW_POSITIONS else "",
            "age_years": parse_age(age),
            "sex": parse_sex(row.get("sex", "")),
            "findings": "|".join(found),
        }
        info = self.files[name]
        label, split = _label_of(found), self.lists.get(name)
        if self.experiment is not None:
            label, split = self.experiment[name]
        gathering.add(
            name,
            SourceImage(
                name, row["patient"], info.url, info.version, label, split, columns
            ),
        )  # fmt: skip


def _name_origin(experiment: object, lists: Mapping[str, Split]) -> str:
    if experiment is not None:
        return "the experiment's lists"
    return "official lists" if lists else "no official lists, so by patient"


def _split_findings(cell: str) -> list[str]:
    return [finding for part in cell.split("|") if (finding := part.strip())]


def _label_of(findings: Sequence[str]) -> Label:
    if not findings:
        return Label.UNKNOWN
    return Label.NORMAL if list(findings) == [NO_FINDING] else Label.ANOMALOUS


def _check_findings(findings: Sequence[str]) -> frozenset[str]:
    by_folded = {name.lower(): name for name in FINDINGS}
    for name in findings:
        if name.lower() not in by_folded:
            raise SettingsError(
                "findings", f"no finding {name!r} in ChestX-ray14", f"Use {', '.join(FINDINGS)}"
            )
    return frozenset(by_folded[name.lower()] for name in findings)


def _name_files(folder: Folder) -> tuple[dict[str, ObjectInfo], list[ManifestEntry]]:
    """Image files by name, and those whose name another has too."""
    files: dict[str, ObjectInfo] = {}
    doubles = []
    for info in folder.files:
        if not is_image(info.url):
            continue
        first = files.setdefault(name_of(info.url), info)
        if first is not info:
            doubles.append(
                ManifestEntry(info.url, "skipped", f"{first.url} has the same name and is taken")
            )
    return files, doubles


def _find_table(folder: Folder) -> str:
    below = [
        info.url
        for name in _TABLE_NAMES
        for info in sorted(folder.files, key=lambda info: info.url.count("/"))
        if name_of(info.url) in {name, f"{name}.gz"}
    ]
    parent = parent_of(folder.url)
    beside = [join(parent, name + end) for name in _TABLE_NAMES for end in ("", ".gz")] if (
        parent
    ) else []  # fmt: skip
    found = below[:1] or [candidate for candidate in beside if exists(candidate)][:1]
    if not found:
        raise SourceError(
            folder.url,
            f"no {' or '.join(_TABLE_NAMES)}",
            "Put the official table there, or give its URL",
        )
    return found[0]


def _read_lists(folder: Folder, table_url: str) -> dict[str, Split]:
    """The official split of each image that the lists name."""
    home = parent_of(plain_url(table_url))
    splits: dict[str, Split] = {}
    for name, split in _LISTS.items():
        urls = [info.url for info in folder.files if name_of(info.url) == name]
        if not urls and home and exists(join(home, name)):
            urls = [join(home, name)]
        for url in urls[:1]:
            names = set(read_bytes(url).decode("utf-8", "replace").split())
            if twice := sorted(names & set(splits)):
                raise SourceError(
                    url, f"{len(twice)} images are in both lists, the first is {twice[0]}",
                    "Fetch the official lists again",
                )  # fmt: skip
            splits |= dict.fromkeys(names, split)
    return splits
