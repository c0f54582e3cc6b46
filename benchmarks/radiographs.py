"""How fast radiographs of 1024 px become a sealed dataset, from PNG and from DICOM.

The reference's way is that of the public code of the paper: Pillow decodes, converts to grey,
resizes by its bilinear filter to 300 px and writes a PNG. For DICOM it is the usual one: pydicom's
pixels, its modality and VOI functions, then the same. The limit decodes every file by the fastest
decoder that gives these pixels, and does nothing else. All run on one core, but for the last
comparison: one Dask worker against two. Ours also looks for duplicates and draws a contact sheet.

The inputs are the real originals where they are at hand, painted films otherwise; each is turned
and mirrored into several, so that no two files are alike.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

from benchmarks.harness import (
    Comparison,
    Method,
    Outcome,
    compare,
    on_one_core,
    run_benchmark,
)
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.io.storage import describe
from pipeline.records import ImageListing, SourceImage
from pipeline.runtime.engines import MapWork, dask_engine, map_serially
from pipeline.synthetic.xrays import write_xrays

SIDE_PX = 1024
REFERENCE_PX = 300
ORIGINALS = Path(__file__).parents[2] / "shared" / "data" / "nih" / "images_1024"
OURS, REFERENCE, LIMIT = "Normscope, sealed dataset", "the reference's way", "decoding alone"


@dataclass(frozen=True)
class Workplace:
    """Inputs and output folder that all methods share.

    Args:
        folder: Folder in which each run makes its own `out`.
        files: Paths of the radiographs.
        settings: Settings of the dataset that Normscope makes.
        repeats: Number of times that Normscope takes each file, so that there are several shards.
    """

    folder: Path
    files: tuple[Path, ...]
    settings: ImageSettings
    repeats: int = 1

    def clear(self) -> None:
        """Delete what a run has made."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def ingest(self, map_work: MapWork) -> None:
        """Normscope: ingest every file into a sealed dataset."""
        images = [
            SourceImage(f"{turn}-{path.name}", path.name, str(path), version, split="train")
            for path in self.files
            for version in [describe(str(path)).version]
            for turn in range(self.repeats)
        ]
        url, listing = str(self.folder / "out"), ImageListing(tuple(images))
        report = ingest_images(url, listing, self.settings, map_work, source="benchmark")
        if report.failures:
            raise RuntimeError(f"{len(report.failures)} files failed: {report.failures[0].reason}")

    def convert(self, decode: Callable[[Path], Image.Image]) -> None:
        """The reference: convert every file to a grey PNG of 300 px."""
        target = self.folder / "out"
        target.mkdir()
        for path in self.files:
            grey = decode(path).convert("L")
            small = grey.resize((REFERENCE_PX, REFERENCE_PX), Image.Resampling.BILINEAR)
            small.save(target / f"{path.stem}.png")

    def decode(self, decode: Callable[[bytes], object]) -> None:
        """The limit: decode every file."""
        for path in self.files:
            decode(path.read_bytes())


def read_originals() -> tuple[list[NDArray[np.uint8]], str]:
    """Grey radiographs of 1024 px, uint8 (H, W), and what they are."""
    real = [
        pixels
        for path in sorted(ORIGINALS.glob("*.png"))
        if (pixels := np.asarray(Image.open(path))).shape == (SIDE_PX, SIDE_PX)
    ]
    if real:
        return real, f"{len(real)} ChestX-ray14 originals"
    with tempfile.TemporaryDirectory() as folder:
        write_xrays(folder, seed=0, patients=2, size_px=SIDE_PX)
        painted = [Image.open(path) for path in sorted(Path(folder, "images").iterdir())]
        size = (SIDE_PX, SIDE_PX)
        return [np.asarray(image.resize(size)) for image in painted], "painted films"


def vary(originals: Sequence[NDArray[np.uint8]], count: int) -> Iterator[NDArray[np.uint8]]:
    """Originals, turned and mirrored, so that no two are alike."""
    for number in range(count):
        turned = np.rot90(originals[number % len(originals)], number // len(originals) % 4)
        is_mirrored = number // len(originals) // 4 % 2
        yield np.ascontiguousarray(turned[:, ::-1] if is_mirrored else turned)


def make_film(pixels: NDArray[np.uint8], number: int, *, is_compressed: bool) -> Dataset:
    """A digital radiograph of 12 bits with a window, as detectors give it."""
    noise = np.random.default_rng(number).integers(0, 16, pixels.shape, dtype=np.uint16)
    stored = pixels.astype(np.uint16) * 16 + noise
    film, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
    film.file_meta = meta
    film.SOPClassUID, film.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    film.Rows, film.Columns = pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.WindowCenter, film.WindowWidth = 2048, 4096
    if is_compressed:
        meta.TransferSyntaxUID = JPEG2000Lossless
        stream = imagecodecs.jpeg2k_encode(
            stored, reversible=True, level=0, codecformat="j2k", bitspersample=12
        )
        film.add_new(0x7FE00010, "OB", encapsulate([bytes(stream)]))
    else:
        film.add_new(0x7FE00010, "OW", stored.tobytes())
    return film


def decode_by_pydicom(path: Path) -> Image.Image:
    """The usual way with DICOM."""
    film = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(film.pixel_array, film), film).astype(np.float64)
    low, high = values.min(), values.max()
    return Image.fromarray(np.asarray((values - low) / (high - low) * 255, np.uint8))


def decode_frame(data: bytes) -> object:
    """The bare pixels of a DICOM file."""
    film = pydicom.dcmread(BytesIO(data))
    if film.file_meta.TransferSyntaxUID == JPEG2000Lossless:
        return imagecodecs.jpeg2k_decode(next(generate_frames(film.PixelData)))
    return np.frombuffer(film.PixelData, "<u2")


def compare_on_one_core(
    title: str,
    place: Workplace,
    decode_theirs: Callable[[Path], Image.Image],
    decode_bare: Callable[[bytes], object],
    rounds: int,
) -> Comparison:
    """Ours, the reference's and the limit, in turns."""
    count = len(place.files)
    methods = [
        Method(REFERENCE, partial(place.convert, decode_theirs), count, place.clear),
        Method(OURS, partial(place.ingest, map_serially), count, place.clear),
        Method(LIMIT, partial(place.decode, decode_bare), count),
    ]
    with on_one_core():
        return compare(title, methods, unit="images/s", rounds=rounds)


def compare_workers(place: Workplace, rounds: int) -> Comparison:
    """The same ingest by one Dask worker and by two, which are there already."""
    count = len(place.files) * place.repeats
    with dask_engine(workers=1) as one, dask_engine(workers=2) as two:
        methods = [
            Method("one worker", partial(place.ingest, one), count, place.clear),
            Method("two workers", partial(place.ingest, two), count, place.clear),
        ]
        return compare("PNG to a sealed dataset by Dask", methods, unit="images/s", rounds=rounds)


def write_inputs(folder: Path, count: int, film_count: int) -> tuple[list[tuple[Path, ...]], str]:
    """Write PNGs, and the first of them as DICOM files too, uncompressed and as JPEG 2000.

    Returns:
        The paths of the PNGs, of the uncompressed and of the compressed films; what they show.
    """
    originals, name = read_originals()
    files: list[list[Path]] = [[], [], []]
    for number, pixels in enumerate(vary(originals, count)):
        files[0].append(folder / f"{number:05}.png")
        Image.fromarray(pixels).save(files[0][-1])
        if number < film_count:
            for is_compressed in (False, True):
                path = folder / f"{number:05}-{is_compressed:d}.dcm"
                film = make_film(pixels, number, is_compressed=is_compressed)
                film.save_as(path, enforce_file_format=True)
                files[1 + is_compressed].append(path)
    return [tuple(paths) for paths in files], name


def measure(quick: bool) -> Outcome:
    """Measure PNG and DICOM on one core, then PNG on two."""
    count, film_count, rounds = (128, 16, 3) if quick else (256, 32, 5)
    settings = ImageSettings(modality="radiograph", size_px=64, colour="grey")
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as folder:
        root = Path(folder)
        files, name = write_inputs(root, count, film_count)
        pngs, films, packed = (Workplace(root, paths, settings) for paths in files)
        png = compare_on_one_core(
            "PNG of 1024 px", pngs, Image.open, imagecodecs.png_decode, rounds
        )
        dicom, jpeg2000 = (
            compare_on_one_core(
                f"DICOM of 1024 px, 12 bits, {kind}", place, decode_by_pydicom, decode_frame, rounds
            )
            for kind, place in (("uncompressed", films), ("JPEG 2000", packed))
        )
        workers = compare_workers(replace(pngs, repeats=512 // count), rounds)
    inputs = f"{count} PNGs and {film_count} DICOM files made from {name}"
    return _conclude(png, dicom, jpeg2000, workers, inputs)


def _conclude(
    png: Comparison, dicom: Comparison, jpeg2000: Comparison, workers: Comparison, inputs: str
) -> Outcome:
    metrics = {
        "vs_reference": png.ratio(OURS),
        "share_of_limit": png.ratio(OURS, LIMIT),
        "two_workers": workers.ratio("two workers"),
        "dicom_vs_reference": dicom.ratio(OURS),
        "dicom_jpeg2000_vs_reference": jpeg2000.ratio(OURS),
        "dicom_jpeg2000_share_of_limit": jpeg2000.ratio(OURS, LIMIT),
    }
    notes = (
        f"{inputs}. Ours makes images of 64 px, hashes them for "
        "duplicates and seals; the reference's way makes PNGs of 300 px.",
        "Bare pixels of uncompressed DICOM are a copy of memory, which is no limit to speak of.",
    )
    return Outcome((png, dicom, jpeg2000, workers), metrics, notes)


if __name__ == "__main__":
    run_benchmark("radiographs", measure)
