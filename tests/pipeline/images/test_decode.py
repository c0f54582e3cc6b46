"""Radiographs: every kind of PNG becomes the same grey levels, or is refused with its reason."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.images.decode import _decode_plain_png, _drop_comments, is_grey, prepare_image
from pipeline.images.decode import decode_image as decode
from tests.support.made.images import claim_png

# Wider than high, a gradient along x and one bright spot off the diagonal.
GREY: NDArray[np.uint8] = np.tile(np.arange(0, 160, 4, dtype=np.uint8), (24, 1))
GREY[3, 30] = 255


def decode_pixels(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image that nothing is to be said of."""
    pixels, remark = decode(data, name)
    assert not remark
    return pixels


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002 - Pillow's own keyword
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def colour() -> NDArray[np.uint8]:
    return np.stack([GREY, GREY[::-1], GREY // 2], axis=2)


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_eight_bits_come_back_as_they_are(container: str) -> None:
    pixels = decode_pixels(encode(Image.fromarray(GREY), container), "a.png")
    assert pixels.shape == (24, 40, 1)
    np.testing.assert_array_equal(pixels[..., 0], GREY)
    rgb = decode_pixels(encode(Image.fromarray(colour()), container), "a.png")
    np.testing.assert_array_equal(rgb, colour())


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_plain_grey_pngs_are_decoded_as_pillow_does(level: int) -> None:
    noise = np.random.default_rng(level).integers(0, 256, (70, 33), dtype=np.uint8)
    for pixels in (GREY, noise):
        data = encode(Image.fromarray(pixels), compress_level=level)
        plain = _decode_plain_png(data)
        assert plain is not None
        np.testing.assert_array_equal(plain[..., 0], pixels)
        np.testing.assert_array_equal(decode_pixels(data, "a.png"), plain)


def test_real_radiographs_are_decoded_as_pillow_does(shared_data: Path) -> None:
    for path in sorted((shared_data / "nih" / "images_1024").glob("*.png")):
        plain = _decode_plain_png(_drop_comments(path.read_bytes()))
        assert plain is not None
        with Image.open(path) as image:
            np.testing.assert_array_equal(plain[..., 0], np.asarray(image))


def test_what_is_not_plain_is_left_to_pillow() -> None:
    plain = encode(Image.fromarray(GREY))
    exif = Image.Exif()
    exif[0x0112] = 6
    others = {
        "colour": encode(Image.fromarray(colour())),
        "deep": encode(Image.fromarray(GREY.astype(np.uint16))),
        "transparent": encode(Image.fromarray(GREY), transparency=7),
        "turned": encode(Image.fromarray(GREY), exif=exif),
        "turned by a text": plain[:33] + chunk(b"tEXt", b"Raw profile type exif\0") + plain[33:],
        "damaged": plain[:60] + bytes([plain[60] ^ 1]) + plain[61:],
        "short": plain[:-30],
    }
    for kind, data in others.items():
        assert _decode_plain_png(data) is None, kind
    commented = plain[:33] + chunk(b"tEXt", b"Software\0x") + plain[33:]
    np.testing.assert_array_equal(decode_pixels(commented, "a.png")[..., 0], GREY)
    # tRNS makes level 28, which is in the image, transparent: black.
    seen = decode_pixels(encode(Image.fromarray(GREY), transparency=28), "a.png")
    assert GREY[0, 7] == 28
    assert seen[0, 7, 0] == 0


def test_area_resizing_takes_the_mean() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 96, 1), dtype=np.uint8)
    result = prepare_image(pixels, "a", size_px=16, channels=1, resampling="area")
    means = pixels.reshape(16, 3, 16, 6).mean(axis=(1, 3))
    assert np.abs(result[..., 0] - means).max() <= 1
    triangle = prepare_image(pixels, "a", size_px=16, channels=1)
    assert np.abs(triangle[..., 0] - means).max() > 3


def test_jpeg_is_read() -> None:
    pixels = decode_pixels(encode(Image.fromarray(GREY), "JPEG", quality=95), "a.jpg")
    assert pixels.shape == (24, 40, 1)
    assert np.abs(pixels[10:, :, 0].astype(int) - GREY[10:]).max() < 8


@pytest.mark.parametrize("container", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_from_their_whole_range(container: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    deep[0, :3] = [65535, 128, 129]
    pixels = decode_pixels(encode(Image.fromarray(deep), container), "a.png")[..., 0]
    assert pixels[0, :3].tolist() == [255, 0, 1]
    np.testing.assert_array_equal(pixels[1:], GREY[1:])


def test_a_palette_is_looked_up() -> None:
    indexed = Image.fromarray(GREY // 64)
    indexed.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    pixels = decode_pixels(encode(indexed), "a.png")
    assert pixels.shape == (24, 40, 3)
    assert pixels[3, 30].tolist() == [1, 2, 3]
    assert pixels[0, 16].tolist() == [40, 50, 60]


def test_one_bit_is_black_and_white() -> None:
    pixels = decode_pixels(encode(Image.fromarray(GREY > 100)), "a.png")
    assert sorted(np.unique(pixels)) == [0, 255]
    assert pixels[3, 30, 0] == 255


def test_alpha_is_dropped_where_opaque_and_black_where_not() -> None:
    alpha = np.full_like(GREY, 255)
    opaque = Image.fromarray(np.dstack([colour(), alpha]))
    np.testing.assert_array_equal(decode_pixels(encode(opaque), "a.png"), colour())
    alpha[5, 33] = 0
    grey = decode_pixels(encode(Image.fromarray(np.dstack([GREY, alpha]))), "a.png")
    assert grey.shape == (24, 40, 1)
    assert GREY[5, 33] != 0
    assert grey[5, 33, 0] == 0
    assert grey[3, 30, 0] == 255


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right-hand side
    turned = decode_pixels(encode(Image.fromarray(GREY), exif=exif), "a.png")
    assert turned.shape == (40, 24, 1)
    assert turned[30, 24 - 1 - 3, 0] == 255


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90), dtype=np.uint8))
TWO_FRAMES = encode(NOISE, "TIFF", save_all=True, append_images=[Image.new("L", (40, 24))])
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"this is text, whatever its name says", "not a PNG, JPEG or TIFF"),
    "half PNG": (encode(NOISE)[:2700], "cut off or damaged"),
    "start of PNG": (encode(NOISE)[:20], "not a PNG|cut off"),
    "half JPEG": (encode(NOISE, "JPEG")[:2000], "cut off or damaged"),
    "one pixel": (encode(Image.new("L", (1, 1))), "1 x 1 pixels, a side needs at least 16"),
    "narrow": (encode(Image.new("L", (40, 15))), "40 x 15 pixels, a side needs at least 16"),
    "large": (claim_png(9_000, 9_000), "9000 x 9000 pixels, at most 80000000"),
    "larger": (claim_png(30_000, 3_000), "more than 80000000 pixels"),
    "huge": (claim_png(30_000, 30_000), "more than 80000000 pixels"),
    "floats": (encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "32-bit"),
    "two frames": (TWO_FRAMES, "2 frames"),
    "other format": (encode(NOISE, "GIF"), "not a PNG, JPEG or TIFF"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_reason(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(SourceError, match=reason) as caught:
        decode_pixels(data, "folder/bad.png")
    assert caught.value.item == "folder/bad.png"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("container", ["PNG", "JPEG", "TIFF"])
def test_whatever_byte_is_damaged_the_file_alone_is_refused(container: str) -> None:
    whole = encode(NOISE, container)
    chance = np.random.default_rng(1)
    outcomes: list[object] = []
    for _ in range(400):
        data = bytearray(whole)
        for place in chance.integers(0, min(len(data), 200), 2):
            data[place] = chance.integers(256)
        try:
            outcomes.append(decode_pixels(bytes(data), "bad.png").ndim)
        except SourceError as error:
            outcomes.append(error.item)
    assert {"bad.png"} <= set(outcomes) <= {3, "bad.png"}


def test_a_crop_is_cut_from_the_centre() -> None:
    pixels = np.zeros((30, 50, 1), np.uint8)
    pixels[10:20, 20:30] = 200
    pixels[10, 29] = 255
    result = prepare_image(pixels, "a", size_px=10, channels=1, crop_px=10)
    np.testing.assert_array_equal(result, pixels[10:20, 20:30])
    with pytest.raises(SourceError, match="50 x 30 pixels, smaller than the centre crop of 31"):
        prepare_image(pixels, "a", size_px=10, channels=1, crop_px=31)


def test_resizing_squeezes_and_does_not_alias() -> None:
    pixels = np.zeros((64, 128, 1), np.uint8)
    pixels[:, ::2] = 255  # lines of one pixel: sampling would keep or drop them all
    pixels[32:] = 100
    result = prepare_image(pixels, "a", size_px=16, channels=1)
    assert result.shape == (16, 16, 1)
    np.testing.assert_allclose(result[:7], 127, atol=8)
    np.testing.assert_array_equal(result[9:], 100)


def test_colour_and_grey_are_converted_into_each_other() -> None:
    red = np.zeros((20, 30, 3), np.uint8)
    red[..., 0] = 100
    assert prepare_image(red, "a", size_px=16, channels=1)[4, 7].tolist() == [30]  # 0.299 of it
    repeated = prepare_image(GREY[..., None], "a", size_px=16, channels=3)
    assert repeated.shape == (16, 16, 3)
    assert is_grey(repeated)
    assert repeated.std() > 10
    assert not is_grey(prepare_image(red, "a", size_px=16, channels=3))


def test_equalising_spreads_a_dark_image_over_the_whole_range() -> None:
    dark = (GREY // 8)[..., None]
    assert prepare_image(dark, "a", size_px=24, channels=1).max() < 32
    spread = prepare_image(dark, "a", size_px=24, channels=1, equalize=True)
    assert spread.max() > 240
    assert spread.min() < 15
    assert (np.diff(spread[12, :, 0].astype(int)) >= 0).all()
    with pytest.raises(ValueError, match="3 channels, equalize True"):
        prepare_image(dark, "a", size_px=24, channels=3, equalize=True)


def test_original_radiographs_are_read(shared_data: Path) -> None:
    files = sorted((shared_data / "nih" / "images_1024").glob("*.png"))
    assert files
    for path in files:
        pixels = decode_pixels(path.read_bytes(), path.name)
        assert pixels.shape in {(512, 512, 1), (1024, 1024, 1)}
        small = prepare_image(pixels, path.name, size_px=64, channels=1)
        assert abs(float(small.mean()) - float(pixels.mean())) < 1
