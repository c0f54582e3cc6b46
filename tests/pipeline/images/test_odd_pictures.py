"""Odd pictures: TIFF's many forms show what they mean, and files of comments show their pixels."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.errors import SourceError
from pipeline.images.decode import decode_image

# Wider than high, brighter to the right, with one white spot off the diagonal.
GREY: NDArray[np.uint8] = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (24, 1))
GREY[3, 30] = 255
COLOUR: NDArray[np.uint8] = np.stack([GREY, GREY[::-1], GREY // 2], axis=2)


def write_tiff(*pages: NDArray[Any], byteorder: str = "<", **options: Any) -> bytes:
    stream = BytesIO()
    with tifffile.TiffWriter(stream, byteorder=byteorder) as file:  # type: ignore[arg-type]  # one of both
        for page in pages:
            file.write(page, metadata=None, software=False, **options)
    return stream.getvalue()


def pack_tiff(values: NDArray[Any], bits: int, photometric: int = 1) -> bytes:
    """A TIFF of grey values of any bits, whose rows begin at whole bytes (TIFF 6.0, tag 258)."""
    rows = []
    for row in values:
        digits = "".join(format(int(value), f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows.append(int(digits, 2).to_bytes(len(digits) // 8, "big"))
    data = b"".join(rows)
    data += b"\0" * (len(data) % 2)
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


def write_png(image: Image.Image, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def require(data: bytes, wanted: NDArray[np.uint8], tolerance: int = 0) -> None:
    pixels, remark = decode_image(data, "odd")
    assert not remark
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    assert pixels.shape == wanted.shape
    assert np.abs(pixels.astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("compression", "predictor"),
    [(None, False), ("lzw", False), ("lzw", True), ("zlib", True), ("packbits", False)],
)
def test_every_form_of_tiff_shows_the_same(
    byteorder: str, compression: str | None, predictor: bool
) -> None:
    how: dict[str, Any] = {
        "byteorder": byteorder, "compression": compression, "predictor": predictor
    }  # fmt: skip
    for depth in (np.uint8(1), np.uint16(257)):
        grey, colour, white = GREY * depth, COLOUR * depth, np.iinfo(depth.dtype).max
        require(write_tiff(grey, photometric="minisblack", **how), GREY)
        require(write_tiff(grey, photometric="minisblack", tile=(16, 16), **how), GREY)
        require(write_tiff(grey, photometric="minisblack", rowsperstrip=5, **how), GREY)
        require(write_tiff(white - grey, photometric="miniswhite", **how), GREY)
        require(write_tiff(colour, photometric="rgb", **how), COLOUR)
        apart = np.ascontiguousarray(np.moveaxis(colour, 2, 0))
        require(write_tiff(apart, photometric="rgb", planarconfig="separate", **how), COLOUR)


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_greatest_value_of_any_number_of_bits_is_white(bits: int) -> None:
    full = 2**bits - 1
    values = GREY.astype(int) * full // 255
    wanted = np.rint(values * 255 / full).astype(np.uint8)
    require(pack_tiff(values, bits), wanted)
    require(pack_tiff(full - values, bits, photometric=0), wanted)
    assert wanted[3, 30] == 255


def test_alpha_of_deep_tiffs_lies_on_black() -> None:
    alpha = np.full_like(GREY, 255)
    alpha[5, 33] = 0
    seen = GREY * (alpha > 0)
    deep = np.dstack([GREY, alpha]) * np.uint16(257)
    how = {"photometric": "minisblack", "planarconfig": "contig"}
    require(write_tiff(deep, extrasamples=["unassalpha"], **how), seen)
    require(write_tiff(deep, extrasamples=["unspecified"], **how), GREY)
    multiplied = np.dstack([seen, alpha])
    require(write_tiff(multiplied, extrasamples=["assocalpha"], **how), seen)
    require(write_tiff(multiplied * np.uint16(257), extrasamples=["assocalpha"], **how), seen)
    deep = np.dstack([COLOUR, alpha]) * np.uint16(257)
    wanted = COLOUR * (alpha > 0)[..., None]
    require(write_tiff(deep, extrasamples=["unassalpha"], photometric="rgb"), wanted)


def test_inks_of_deep_tiffs_become_colours() -> None:
    inks = np.dstack([255 - COLOUR, np.zeros_like(GREY)]) * np.uint16(257)
    require(write_tiff(inks, photometric="separated"), COLOUR, tolerance=1)


def test_the_orientation_of_deep_tiffs_is_applied() -> None:
    turned = write_tiff(
        GREY * np.uint16(257), photometric="minisblack", extratags=[(274, 3, 1, 6, True)]
    )
    require(turned, np.rot90(GREY, -1))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("int8", "signed 8-bit values"),
        ("int16", "signed 16-bit values"),
        ("uint32", "32-bit values"),
        ("float16", "floating-point 16-bit values"),
        ("float32", "floating-point 32-bit values"),
        ("float64", "floating-point 64-bit values"),
        ("complex64", "complex 64-bit values"),
    ],
)
def test_samples_without_an_agreed_range_are_refused(dtype: str, words: str) -> None:
    with pytest.raises(SourceError, match=f"^odd: {words}, which have no agreed range"):
        decode_image(write_tiff(GREY.astype(dtype), photometric="minisblack"), "odd")


@pytest.mark.parametrize("bits", [8, 16])
def test_samples_of_no_known_meaning_are_refused(bits: int) -> None:
    many = np.repeat(GREY[..., None], 5, axis=2).astype(f"uint{bits}")
    data = write_tiff(many, photometric="minisblack", planarconfig="contig")
    with pytest.raises(SourceError, match=f"5 samples a pixel of {bits} bits, stored as MINISBL"):
        decode_image(data, "odd")


def test_deep_tiffs_that_are_cut_off_are_refused() -> None:
    noise = np.random.default_rng(3).integers(0, 65536, (24, 40), dtype=np.uint16)
    for compression in (None, "zlib", "lzw"):
        whole = write_tiff(noise, photometric="minisblack", compression=compression)
        at = len(whole) - 300  # the pixels come last
        with pytest.raises(SourceError, match="cut off or damaged"):
            decode_image(whole[:at], "odd")
    absent = bytearray(write_tiff(noise, photometric="minisblack"))
    tag = absent.index(struct.pack("<HHI", 279, 4, 1))
    absent[tag + 8 : tag + 12] = bytes(4)  # a strip of no bytes would come out black
    with pytest.raises(SourceError, match="strips or tiles are missing"):
        decode_image(bytes(absent), "odd")


def test_deep_tiffs_are_measured_before_they_are_decoded() -> None:
    deep = bytearray(write_tiff(GREY * np.uint16(257), photometric="minisblack"))
    for tag, side in ((256, 40), (257, 24)):
        at = deep.index(struct.pack("<HH", tag, 4))
        assert struct.unpack_from("<I", deep, at + 8)[0] == side
        deep[at + 8 : at + 12] = struct.pack("<I", 60_000)
    with pytest.raises(SourceError, match="60000 x 60000 pixels, at most"):
        decode_image(bytes(deep), "odd")


@pytest.mark.parametrize("depth", [np.uint8(1), np.uint16(257)])
def test_pages_that_are_no_picture_do_not_count(depth: np.uint8 | np.uint16) -> None:
    stream = BytesIO()
    with tifffile.TiffWriter(stream) as file:
        how: dict[str, Any] = {"photometric": "minisblack", "metadata": None}
        file.write(GREY[::2, ::2] * depth, subfiletype=1, **how)
        file.write(GREY * depth, **how)
        file.write(GREY[::4, ::4] * depth, extratags=[(255, 3, 1, 2, True)], **how)
        file.write(GREY > 9, photometric="mask", subfiletype=4, metadata=None)
    require(stream.getvalue(), GREY)


def test_pictures_that_are_several_are_refused() -> None:
    small = GREY[:20, :30]
    for depth in (np.uint8(1), np.uint16(257)):
        with pytest.raises(SourceError, match="holds 2 frames"):
            decode_image(write_tiff(GREY * depth, small * depth, photometric="minisblack"), "odd")
        alone = write_tiff(GREY * depth, photometric="minisblack", subfiletype=1)
        require(alone, GREY)  # it says that it is a copy, but is all there is


def test_a_chain_of_pages_that_leads_back_ends() -> None:
    for depth in (np.uint8(1), np.uint16(257)):
        data = bytearray(write_tiff(GREY * depth, photometric="minisblack"))
        first = struct.unpack_from("<I", data, 4)[0]
        count = struct.unpack_from("<H", data, first)[0]
        data[first + 2 + 12 * count : first + 6 + 12 * count] = data[4:8]
        require(bytes(data), GREY)


@pytest.mark.parametrize("image", [Image.fromarray(GREY), Image.fromarray(COLOUR)])
def test_comments_of_any_size_hide_no_pixels(image: Image.Image) -> None:
    large = "x" * (3 << 20)
    texts = PngInfo()
    texts.add_text("Comment", large, zip=True)
    texts.add_text("Raw profile type exif", large, zip=True)
    texts.add_itxt("Description", large, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", large, zip=True)
    many = PngInfo()
    for number in range(25):  # 75 MB in all
        many.add_text(f"Comment {number}", large, zip=True)
    profile = large.encode() * 30
    for data in (write_png(image, pnginfo=texts), write_png(image, pnginfo=many)):
        require(data, np.asarray(image))
    require(write_png(image, icc_profile=profile), np.asarray(image))


def test_an_orientation_counts_beside_large_comments() -> None:
    xmp = '<rdf:Description tiff:Orientation="6"/>' + " " * (2 << 20)
    for is_packed in (False, True):
        texts = PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", xmp, zip=is_packed)
        texts.add_text("Comment", "x" * (2 << 20), zip=True)
        require(write_png(Image.fromarray(GREY), pnginfo=texts), np.rot90(GREY, -1))


def test_a_damaged_comment_hides_no_pixels() -> None:
    plain = write_png(Image.fromarray(COLOUR))
    text = b"Comment\0\0" + b"not deflated"
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(text))
    require(plain[:33] + chunk + plain[33:], COLOUR)


@pytest.mark.parametrize(
    ("values", "share", "greys"),
    [
        (GREY.astype(np.uint16) * 16, 16, "0 to 16"),
        (GREY.astype(np.uint16) * 64, 4, "0 to 6[34]"),  # Pillow cuts a colour's bits off
        (65535 - GREY.astype(np.uint16) * 16, 16, "239 to 255"),
    ],
)
def test_deep_pictures_of_little_range_are_spoken_of(
    values: NDArray[np.uint16], share: int, greys: str
) -> None:
    for data in (
        write_png(Image.fromarray(values)),
        write_tiff(values, photometric="minisblack"),
        write_tiff(np.repeat(values[..., None], 3, axis=2), photometric="rgb"),
    ):
        words = f"uses 1/{share} of the range of its 16 bits: greys {greys} of 255"
        words += "; `--grey-range` chooses"
        assert re.fullmatch(words, decode_image(data, "odd").remark)


def test_pictures_of_enough_range_are_not_spoken_of() -> None:
    for values in (GREY // 16, GREY.astype(np.uint16) * 128, np.full((24, 40), 9, np.uint16)):
        assert not decode_image(write_png(Image.fromarray(values)), "odd").remark


def test_of_a_phones_pictures_the_first_is_taken() -> None:
    stream = BytesIO()
    first, second = Image.fromarray(GREY), Image.fromarray(GREY[::2, ::2])
    first.save(stream, "MPO", save_all=True, append_images=[second, second], quality=98)
    pixels, remark = decode_image(stream.getvalue(), "odd")
    assert remark == "holds 3 pictures, of which the first is taken"
    assert pixels.shape == (24, 40, 1)
    assert np.abs(pixels[10:, :, 0].astype(int) - GREY[10:]).max() < 4


def test_a_jpeg_of_inks_becomes_colours() -> None:
    stream = BytesIO()
    inks = np.dstack([255 - COLOUR[::-1], np.zeros_like(GREY)])
    Image.fromarray(inks, "CMYK").save(stream, "JPEG", quality=98, subsampling=0)
    require(stream.getvalue(), COLOUR[::-1], tolerance=25)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS"),
        (b"/annex/objects/SHA256E-s9--ab.png\n", "git-annex"),
        (b"../.git/annex/objects/SHA256E-s9--ab.png\n", "git-annex"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<title>Log in</title>", "web page"),
    ],
)
def test_what_stands_in_a_files_place_is_named(data: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        decode_image(data, "odd")
