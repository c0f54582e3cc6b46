"""Image files -> rows of a dataset: PNG, JPEG, TIFF or DICOM, alone or in an archive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.dicom.parse import MAX_FILE_BYTES, is_dicom
from pipeline.dicom.pixels import decode_dicom
from pipeline.dicom.voi import Voi
from pipeline.errors import DeniedError, SourceError
from pipeline.grey_range import GreyRange
from pipeline.images.decode import Decoded, Resampling, decode_image, prepare_image
from pipeline.images.duplicates import hash_images, write_hashes
from pipeline.ingest.sources import SourceRead
from pipeline.io.archives import read_member
from pipeline.io.scratch import Scratch
from pipeline.io.storage import describe, parse, read_bytes
from pipeline.privacy.redaction import named_as
from pipeline.records import Array, SourceImage

MEASURED_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    # Height and width of the file's own pixels: boxes are given in these.
    "file_shape_yx": np.dtype("int32"),
    # BLAKE3 of the file's bytes.
    "source_digest": np.dtypes.StringDType(),
    "perceptual_hash": np.dtypes.StringDType(),
    # What the manifest says of an odd file that was taken all the same.
    "remark": np.dtypes.StringDType(),
}


@dataclass(frozen=True)
class ImageReader:
    """Reads one file as one image. A `sources.Reader`.

    Args:
        size_px: Height and width of the result.
        channels: 1 or 3.
        crop_px: Side of the centre crop in the file's pixels, or None.
        equalize: Whether to equalise the histogram.
        resampling: Filter of the resizing, as `prepare_image` takes it.
        voi: Position or explanation of a VOI LUT or window, for DICOM files.
        grey_range: Range of greys of deep files that name none, as `decode_source` takes it.
        scratch: Folder where archives are unpacked; None for the usual one.
    """

    size_px: int
    channels: int
    crop_px: int | None = None
    equalize: bool = False
    resampling: Resampling = "antialiased"
    voi: Voi = 0
    grey_range: GreyRange = "full"
    scratch: Scratch | None = field(default=None, repr=False)  # changes no pixel

    def read(self, source: SourceImage, images: NDArray[np.uint8]) -> Iterator[SourceRead]:
        """Read a file.

        Args:
            source: The file to read.
            images: uint8 (1, `size_px`, `size_px`, `channels`), to be filled.

        Yields:
            What was found out about the image, once.

        Raises:
            SourceError: It cannot be decoded, is smaller than the crop, or is not the file that
                was planned.
        """
        data = read_source(source, self.scratch)
        pixels, remark = decode_source(
            data, source.public_name, voi=self.voi, grey_range=self.grey_range
        )
        images[0] = prepare_image(
            pixels,
            source.public_name,
            size_px=self.size_px,
            channels=self.channels,
            crop_px=self.crop_px,
            equalize=self.equalize,
            resampling=self.resampling,
        )
        measured: dict[str, Array] = {
            "file_shape_yx": np.array([pixels.shape[:2]], np.int32),
            "source_digest": np.array([blake3(data).hexdigest()], object),
            "perceptual_hash": np.array(write_hashes(hash_images(images)), object),
            "remark": np.array([remark], object),
        }
        yield SourceRead((None,), measured)


def read_source(
    source: SourceImage, scratch: Scratch | None = None, *, max_bytes: int = MAX_FILE_BYTES
) -> bytes:
    """Read a listed file; errors call it by its public name.

    Args:
        source: The file, as listed.
        scratch: Folder where archives are unpacked; None for the usual one.
        max_bytes: Refuse a larger file before it is read.

    Raises:
        SourceError: It is too large, has changed since it was listed, or is a local file that may
            not be read; or is gone, where it has a public name.
        AbsentError: It is gone.
        StorageError: It cannot be reached.
    """
    with named_as(source.name) if source.name else _denied_alone(source.url):
        if source.span_bytes is not None:
            size = source.span_bytes[1] - source.span_bytes[0]
            if size > max_bytes:
                raise SourceError(
                    source.public_name,
                    f"{size} bytes, at most {max_bytes} are read",
                    "Leave it out",
                )
            return read_member(source.url, source.version, source.span_bytes, scratch)
        data = read_bytes(source.url, max_bytes=max_bytes)
        # Asked afterwards: whatever was read before this answer is what was planned.
        version = describe(source.url).version
    if version != source.version:
        raise SourceError(
            source.public_name, "the file has changed since it was planned", "Run the ingest again"
        )
    return data


@contextmanager
def _denied_alone(url: str) -> Iterator[None]:
    """Let a local file fail by itself where its rights are at fault, not the storage."""
    try:
        yield
    except DeniedError as error:
        if parse(url).scheme != "file":
            raise
        remedy = "Give the right to read it, or leave it out"
        raise SourceError(url, error.problem, remedy) from error


def decode_source(
    data: bytes, name: str, *, voi: Voi = 0, grey_range: GreyRange = "full"
) -> Decoded:
    """Decode a DICOM, PNG, JPEG or TIFF, whichever the bytes are.

    Args:
        data: The file's bytes.
        name: Public name of the file, for errors.
        voi: Position or explanation of a VOI LUT or window, for DICOM files.
        grey_range: Range of greys of DICOM files without a VOI and of other grey files of more
            than 8 bits: `full`, `percentiles` or `LOW,HIGH`.

    Raises:
        SourceError: It is none of them, or cannot be decoded.
    """
    if is_dicom(data):
        rendered = decode_dicom(data, name, voi=voi, grey_range=grey_range)
        return Decoded(rendered.pixels[..., None], rendered.remark)
    return decode_image(data, name, grey_range=grey_range)
