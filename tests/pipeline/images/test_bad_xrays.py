"""Every bad file and row that a folder of radiographs may hold, all in one batch."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest.manifest import read_manifest
from pipeline.runtime.engines import map_serially
from pipeline.sources.xrays import list_xrays
from pipeline.store.dataset import open_dataset
from tests.support.made.chestxray14 import table_text
from tests.support.made.images import claim_png

GREY = np.tile(np.arange(0, 160, 4, dtype=np.uint8), (24, 1))
FILMS = {
    "whole.png": Image.fromarray(GREY),
    "deep.png": Image.fromarray(GREY.astype(np.uint16) * 257),
    "palette.png": Image.fromarray(GREY).convert("P"),
    "view.png": Image.fromarray(GREY),
    "age.png": Image.fromarray(GREY),
    "twice.png": Image.fromarray(GREY),
    "pixel.png": Image.new("L", (1, 1)),
}


def encode(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path) -> str:
    files = {name: encode(image) for name, image in FILMS.items()}
    files |= {
        "text.png": b"this is text, whatever its name says",
        "half.png": files["whole.png"][: len(files["whole.png"]) // 2],
        "huge.png": claim_png(30_000, 30_000),
    }
    folder.mkdir()
    for name, data in {**files, "unlisted.png": files["whole.png"]}.items():
        (folder / name).write_bytes(data)
    odd = {"view.png": ("50", "F", "OBLIQUE"), "age.png": ("412Y", "F", "PA")}
    names = [*files, "twice.png", "absent.png", "../../x.png"]
    rows: list[tuple[str, ...]] = [
        (name, "No Finding", "0", str(number), *odd.get(name, ("50", "F", "PA")))
        for number, name in enumerate(names)
    ]
    rows[len(files)] = rows[list(files).index("twice.png")]
    (folder / "Data_Entry_2017.csv").write_text(table_text(rows))
    return str(folder)


def test_each_is_named_with_its_reason_and_the_batch_is_whole(tmp_path: Path) -> None:
    url = write_folder(tmp_path / "films")
    name, listing = list_xrays(url)
    settings = ImageSettings(modality="radiograph", size_px=32, colour="grey")
    report = ingest_images(str(tmp_path / "out"), listing, settings, map_serially, source=name)
    entries = read_manifest(f"{report.url}/manifest.json")
    found = {entry.item.removeprefix(f"{url}/"): (entry.state, entry.reason) for entry in entries}
    done = {"whole.png", "deep.png", "palette.png", "view.png", "age.png"}
    assert {item for item, (state, _) in found.items() if state == "done"} == done
    for item, state, reason in (
        ("pixel.png", "failed", "1 x 1 pixels"),
        ("text.png", "failed", "not a PNG"),
        ("half.png", "failed", "cut off or damaged"),
        ("huge.png", "failed", "more than 80000000 pixels"),
        ("../../x.png", "failed", "not a plain file name"),
        ("twice.png", "skipped", "duplicated row"),
        ("absent.png", "skipped", "in the table, but no such image"),
        ("unlisted.png", "skipped", "no row in the table"),
        ("view.png, View Position", "skipped", "'OBLIQUE' is recorded as unknown"),
        ("age.png, Patient Age", "skipped", "'412Y' is recorded as unknown"),
    ):
        assert found[item][0] == state, item
        assert reason in found[item][1], item
    dataset = open_dataset(report.url)
    rows = dict(zip(dataset.column("image_id"), range(dataset.image_count), strict=True))
    assert dataset.column("age_years")[rows["age.png"]] == -1
    assert dataset.column("view_position")[rows["view.png"]] == ""
    images = dataset.read_images(0, dataset.image_count)
    assert not images[~dataset.column("readable")].any()
    for alike in ("deep.png", "palette.png"):
        np.testing.assert_array_equal(images[rows[alike]], images[rows["whole.png"]])
