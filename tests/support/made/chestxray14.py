"""Tables, lists and folders in the layout of ChestX-ray14."""

from __future__ import annotations

from pathlib import Path

SIZES = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
HEAD_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    f"View Position,{SIZES},\n"
)
HEAD_2020 = HEAD_2017.replace("Gender", "Sex").replace(",\n", "\n")
ROWS: list[tuple[str, ...]] = [
    ("00000001_000.png", "No Finding", "0", "1", "058Y", "M", "PA"),
    ("00000001_001.png", "Mass|Nodule", "1", "1", "059Y", "M", "AP"),
    ("00000002_000.png", "No Finding", "0", "2", "011M", "F", "AP"),
    ("00000003_000.png", "Hernia", "0", "3", "412Y", "F", "PA"),
]
NAMES = [row[0] for row in ROWS]


def table_text(rows: list[tuple[str, ...]] = ROWS, *, head: str = HEAD_2017) -> str:
    """The table's text from the cells up to the view position."""
    end = ",2682,2749,0.143,0.143" + ("," if head is HEAD_2017 else "") + "\n"
    return head + "".join(",".join(row) + end for row in rows)


def write_set(
    root: Path, table: str, names: list[str] = NAMES, *, folders: tuple[str, ...] = ("images",)
) -> str:
    """Write a table and files of the images' names, without pixels."""
    for number, name in enumerate(names):
        path = root / folders[number % len(folders)] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"listing reads no image")
    root.mkdir(exist_ok=True)
    (root / "Data_Entry_2017.csv").write_text(table)
    return str(root)


LISTS = {
    "normal/train": "a.png\nb.png\n",
    "normal/test": "c.png\n",
    "anomaly/test": "d.png\n",
}


def write_lists(root: Path, lists: dict[str, str] = LISTS) -> str:
    """Write the published lists of an experiment."""
    for part, text in lists.items():
        path = root / "folds" / "train_test_split" / "nih" / "PA" / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)
