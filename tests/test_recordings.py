"""Moved code makes the datasets and scores that it made: `recordings.json` holds what it did.

Of each dataset there is the fingerprint, which covers content and parameters, and of the images and
each column the dtype, the shape and a BLAKE2b digest of its values, facts of parts repeated for
their rows; `recordings` in `tests/training` holds the losses. Where the recording is meant to
change, `python -m tests.test_recordings` makes it anew. None of the values holds a path of the
temporary folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.privacy.key import PseudonymKey
from pipeline.runtime.engines import map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings, StainSetting
from pipeline.sources.images import list_images
from pipeline.sources.slides import list_slides
from pipeline.sources.xrays import list_xrays
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.synthetic.slides import write_slides
from pipeline.synthetic.xrays import write_xrays
from tests.support.made.dicom import make_dicom, ramp, write_dicom
from tests.support.registered import make_detector
from tests.training.recordings.steps import describe_platform
from training.evaluation.calibration import calibrate, choose_threshold

RECORDING: Final = Path(__file__).with_name("recordings.json")
WITHIN: Final = 1e-5


def tile_slides(folder: Path, stain: StainSetting) -> Dataset:
    """Three slides of 0.5 um/px, one with lesions, as overlapping tiles of 1 um/px."""
    inbox, url = str(folder / "in"), str(folder / "out")
    counts = {"normal_count": 1, "tumor_count": 1, "test_count": 1}
    write_slides(inbox, seed=5, shape_yx=(768, 1152), **counts)
    settings = SlideSettings(
        tile_size_px=48,
        stride_px=40,
        stain=stain,
        max_tiles_per_slide=30,
        seed=2,
        shard_images=16,
        chunk_images=4,
    )
    ingest_slides(url, list_slides(inbox), settings, map_serially)
    return open_dataset(url)


def ingest_xrays(folder: Path) -> Dataset:
    """Films of eight patients, in ChestX-ray14's layout."""
    write_xrays(str(folder / "in"), seed=5, patients=8, size_px=96)
    settings = ImageSettings(modality="radiograph", size_px=40, equalize=True, seed=2)
    source, listing = list_xrays(str(folder / "in"))
    report = ingest_images(str(folder / "out"), listing, settings, map_serially, source=source)
    return open_dataset(report.url)


def ingest_dicom(folder: Path) -> Dataset:
    """Three films: plain, with a window and inverted, and of negative values with a slope."""
    films = (
        make_dicom(ramp(0, 4000), bits_stored=12),
        make_dicom(
            ramp(0, 4000),
            bits_stored=12,
            PhotometricInterpretation="MONOCHROME1",
            WindowCenter=1500,
            WindowWidth=1800,
            SOPInstanceUID="1.2.7",
            PatientID="P2",
        ),
        make_dicom(
            ramp(-900, 3000, "i2"),
            RescaleSlope=2,
            RescaleIntercept=-10,
            SOPInstanceUID="1.2.8",
            PatientID="P3",
            ViewPosition="AP",
        ),
    )
    (folder / "in").mkdir()
    for number, film in enumerate(films):
        (folder / "in" / f"{number}.dcm").write_bytes(write_dicom(film))
    settings = ImageSettings(modality="radiograph", size_px=16, seed=2)
    source, listing = list_xrays(str(folder / "in"), key=PseudonymKey(bytes(range(32))))
    report = ingest_images(str(folder / "out"), listing, settings, map_serially, source=source)
    return open_dataset(report.url)


def ingest_plain(folder: Path, settings: ImageSettings) -> Dataset:
    """Grey and colour PNGs of many shapes, one of them torn, with a table of their labels."""
    (folder / "in" / "x").mkdir(parents=True)
    rows = ["path,label,split,patient,view,age,sex"]
    for number in range(12):
        name = f"{'x/' * (number % 2)}{number:02}.png"
        Image.fromarray(paint(number)).save(folder / "in" / name)
        split = ("train", "train", "validation", "test", "")[number % 5]
        rows.append(f"{name},{number // 5 % 2},{split},p{number},PA,{30 + number},F")
    torn = folder / "in" / "04.png"
    torn.write_bytes(torn.read_bytes()[:300])
    (folder / "in" / "labels.csv").write_text("\n".join(rows[:-1]))  # the last is not listed
    listing = list_images(str(folder / "in"), keeps_unlisted=True)
    report = ingest_images(str(folder / "out"), listing, settings, map_serially, source="plain")
    return open_dataset(report.url)


def paint(number: int) -> NDArray[np.uint8]:
    """Coarse noise, uint8 (y, x), or (y, x, 3) of two in three numbers."""
    tail = (3,) if number % 3 else ()
    coarse = np.random.default_rng(number).integers(0, 256, (9, 7 + number, *tail), np.uint8)
    return coarse.repeat(6, axis=0).repeat(5, axis=1)


DATASETS: Final[Mapping[str, Callable[[Path], Dataset]]] = {
    "slides_macenko": partial(tile_slides, stain="macenko"),
    "slides_without_stain": partial(tile_slides, stain="none"),
    "xrays": ingest_xrays,
    "dicom": ingest_dicom,
    "plain_grey": partial(
        ingest_plain, settings=ImageSettings(size_px=24, colour="grey", crop_px=32)
    ),
    "plain_colour": partial(
        ingest_plain, settings=ImageSettings(size_px=20, colour="auto", resampling="area")
    ),
}


def describe_dataset(dataset: Dataset) -> dict[str, str]:
    """Its fingerprint, and `dtype shape digest` of the images and every column."""
    columns = {name: dataset.column(name) for name in dataset.column_names}
    images = dataset.read_images(0, dataset.image_count)
    found = {"fingerprint": dataset.fingerprint}
    for name, values in sorted({**columns, "image": images}.items()):
        is_text = values.dtype == object
        content = "\n".join(values.tolist()).encode() if is_text else values.tobytes("C")
        digest = blake2b(content, digest_size=16).hexdigest()
        found[name] = f"{'text' if is_text else values.dtype} {values.shape} {digest}"
    return found


def measure_scores(channels: int) -> dict[str, list[float]]:
    """What an untrained network finds in six images, and a calibration by four of them."""
    shape = (40, 34, channels)
    images = np.random.default_rng(7).integers(0, 256, (6, *shape), dtype=np.uint8)
    images[3:, 5:15, 20:30] //= 4  # off the centre
    found = make_detector(shape).detect(images, heatmaps=True)
    maps = found.heatmap
    assert maps is not None
    places = [np.unravel_index(np.nanargmax(each), each.shape) for each in maps]
    calibration = calibrate(found.anomaly_score[:4], maps[:4], found.embedding[:4])
    made: dict[str, Any] = {
        "anomaly_score": found.anomaly_score,
        "embedding_sum": found.embedding.sum(1),
        "heatmap_sum": np.nansum(maps, axis=(1, 2), dtype=np.float64),
        "heatmap_max": np.nanmax(maps, axis=(1, 2)),
        "heatmap_argmax_yx": np.array(places).ravel(),
        "percentile": calibration.percentile(found.anomaly_score),
        "heatmap_scale": np.array([calibration.heatmap_low, calibration.heatmap_high]),
        "threshold": np.array([choose_threshold(found.anomaly_score[:4], quantile=0.5).value]),
    }
    return {name: values.astype(np.float64).tolist() for name, values in made.items()}


def read_recording() -> dict[str, Any]:
    """What `record` wrote."""
    content: dict[str, Any] = json.loads(RECORDING.read_text())
    return content


def record() -> None:
    """Write the recording anew, from the code as it is."""
    datasets = {}
    for name, make in DATASETS.items():
        with TemporaryDirectory() as folder:
            datasets[name] = describe_dataset(make(Path(folder)))
    content = {
        "platform": describe_platform(),
        "datasets": datasets,
        "scores": {str(channels): measure_scores(channels) for channels in (1, 3)},
    }
    RECORDING.write_text(json.dumps(content, indent=1) + "\n")


def without_digests(described: Mapping[str, str]) -> dict[str, str]:
    return {name: text.rpartition(" ")[0] for name, text in described.items()}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_has_the_recorded_arrays(name: str, tmp_path: Path) -> None:
    made, recorded = describe_dataset(DATASETS[name](tmp_path)), read_recording()["datasets"][name]
    assert without_digests(made) == without_digests(recorded)
    if made != recorded and describe_platform() != read_recording()["platform"]:
        differing = sorted(key for key in recorded if made[key] != recorded[key])
        pytest.skip(f"recorded on another platform, which rounds {', '.join(differing)} otherwise")
    assert made == recorded


@pytest.mark.parametrize("channels", [1, 3])
def test_scores_and_heatmaps_are_the_recorded_ones(channels: int) -> None:
    made, recorded = measure_scores(channels), read_recording()["scores"][str(channels)]
    assert made.keys() == recorded.keys()
    for name, values in recorded.items():
        np.testing.assert_allclose(made[name], values, rtol=WITHIN, atol=0, err_msg=name)


if __name__ == "__main__":
    record()
