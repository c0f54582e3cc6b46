"""Batches: one sequence for any number of workers, and datasets that training refuses."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import SchemaError, SettingsError
from pipeline.records import Label
from tests.support.toys import HEIGHT, WIDTH, make_dataset, make_settings
from training.data.augmentation import draw_views, locate_pixels
from training.data.batches import (
    TrainingImages,
    check_trainable,
    choose_rows,
    choose_training_rows,
)
from training.data.chosen_rows import ChosenRows
from training.data.image_cache import (
    HostImages,
    ImagesInMemory,
    StreamedImages,
    fits_on_device,
    open_images,
)
from training.data.sample_order import BUFFER_CHUNKS, SampleOrder, divide_batch
from training.networks.inputs import Views, cut_views, to_tensor
from training.settings import ImageSettings

RANDOM_VIEWS = ImageSettings(crop_px=32, crops_at_random=True, flips_at_random=True)
HELD, STREAMED = {"cache_bytes": 2**30}, {"cache_bytes": 0}
ON_DEVICE = {"cache_bytes": 0, "acceleration": {"images_on_device": "always"}}


def starts_of(chunk_images: int, *part_images: int) -> NDArray[np.int64]:
    """First row of each chunk of parts of so many images, and the number of all rows."""
    begins = np.cumsum([0, *part_images])
    firsts = [np.arange(begin, end, chunk_images) for begin, end in pairwise(begins)]
    return np.concatenate([*firsts, begins[-1:]])


def test_rows_are_readable_normals_of_their_split() -> None:
    dataset = make_dataset("memory://data/rows")
    rows = choose_rows(dataset, "train", Label.NORMAL)
    assert rows.tolist() == [row for row in range(40) if row % 10 != 7]
    anomalies = choose_rows(dataset, "validation", Label.ANOMALOUS)
    assert anomalies.tolist() == [48, 49, 50, 51, 52, 53, 54, 55]
    assert choose_rows(dataset, "validation", Label.ANOMALOUS, 3).tolist() == [48, 52, 55]


def test_what_is_not_good_enough_is_not_learnt_from_and_stays() -> None:
    count = np.arange(56, dtype=np.float32)
    pen_fraction = (55 - count) / np.float32(55)
    pen_fraction[20:22] = np.nan  # nobody knows
    measured = {"laplacian_variance": count, "pen_fraction": pen_fraction}
    dataset = make_dataset("memory://data/quality", measured=measured)
    settings = make_settings(quality={"min_laplacian_variance": 12, "max_pen_fraction": 0.51})
    check_trainable(dataset, settings)
    kept = [row for row in (20, 21, *range(27, 40)) if row % 10 != 7]
    assert choose_training_rows(dataset, settings).list_all().tolist() == kept
    assert TrainingImages(dataset, settings).image_count == len(kept)
    assert len(choose_training_rows(dataset, make_settings())) == 36
    validated = choose_rows(dataset, "validation", Label.NORMAL)
    assert validated.tolist() == [40, 41, 42, 43, 44, 45, 46]


def test_quality_that_nothing_has_or_nobody_measured_is_refused() -> None:
    blur = {"laplacian_variance": np.linspace(5, 6, 56, dtype=np.float32)}
    dataset = make_dataset("memory://data/blurred", measured=blur)
    with pytest.raises(SettingsError, match=r"min_laplacian_variance 7\.0: none of 36 normal"):
        check_trainable(dataset, make_settings(quality={"min_laplacian_variance": 7}))
    with pytest.raises(SchemaError, match="no column 'pen_fraction'"):
        check_trainable(dataset, make_settings(quality={"max_pen_fraction": 0.1}))


def order_rows(
    rows: NDArray[np.int64], *, chunk_starts: NDArray[np.int64], seed: int, epoch: int
) -> NDArray[np.int64]:
    """The whole order of an epoch at once: what `SampleOrder` draws a block at a time."""
    draw = np.random.default_rng([seed, epoch])
    chunks = np.searchsorted(chunk_starts, rows, side="right") - 1
    by_chunk = np.split(rows, np.flatnonzero(np.diff(chunks)) + 1)
    shuffled = draw.permutation(len(by_chunk))
    ordered = [
        draw.permutation(np.concatenate([by_chunk[chunk] for chunk in window]))
        for window in np.split(shuffled, range(BUFFER_CHUNKS, len(shuffled), BUFFER_CHUNKS))
    ]
    return np.concatenate(ordered)


# Parts of one row, of less than a chunk, of many chunks with an odd last one: 3,000 chunks.
PARTS = [1, 3, 50, 7, 2, *[5] * 1400, 333, 4]


def test_a_block_at_a_time_is_the_same_order_from_any_place() -> None:
    starts = starts_of(4, *PARTS)
    rows = np.flatnonzero(np.random.default_rng(7).random(sum(PARTS)) < 0.7)
    count = len(rows)
    whole = np.concatenate(
        [order_rows(rows, chunk_starts=starts, seed=9, epoch=epoch) for epoch in range(5)]
    )
    order = SampleOrder(ChosenRows.of(rows, starts), seed=9)
    for place in (count - 5, 0, 4 * count + 3, 2 * count - 1, 17, 3 * count // 2, 0):
        assert np.array_equal(order.rows_at(place, 2000), whole[place : place + 2000])


def test_chosen_rows_are_found_by_place_and_back() -> None:
    starts = starts_of(4, *PARTS)
    rows = np.flatnonzero(np.random.default_rng(8).random(sum(PARTS)) < 0.3)
    chosen = ChosenRows.of(rows, starts)
    assert np.array_equal(chosen.list_all(), rows)
    places = np.array([len(rows) - 1, 0, 5, 77, 5])
    assert np.array_equal(chosen.at(places), rows[places])
    assert np.array_equal(chosen.place_of(rows[places]), places)
    assert chosen.count_in(chosen.chunks).sum() == len(chosen) == len(rows)


@pytest.mark.parametrize("part_images", [3, 14])
def test_rows_are_chosen_alike_however_they_are_cut_into_parts(part_images: int) -> None:
    measured = {"pen_fraction": np.linspace(0, 1, 56, dtype=np.float32)}
    settings = make_settings(quality={"max_pen_fraction": 0.5})
    made = [
        make_dataset(f"memory://data/cut-{images}", part_images=images, measured=measured)
        for images in (1024, part_images)
    ]
    one, many = (choose_training_rows(dataset, settings).list_all() for dataset in made)
    assert one.tolist() == many.tolist()
    assert 0 < len(one) < 36


def test_an_epoch_holds_every_row_once_and_stays_within_windows() -> None:
    rows = np.flatnonzero(np.arange(1000) % 3 > 0)
    ordered = order_rows(rows, chunk_starts=starts_of(10, 1000), seed=4, epoch=2)
    assert sorted(ordered) == rows.tolist()
    # Whoever reads the first rows of a window has touched no more chunks than its buffer holds.
    in_window = sum(np.isin(rows // 10, np.unique(ordered[:7] // 10)))
    assert len(np.unique(ordered[:in_window] // 10)) <= BUFFER_CHUNKS
    window = ordered[: BUFFER_CHUNKS * 6]
    assert (np.diff(window // 10) != 0).mean() > 0.5


def test_orders_differ_by_seed_and_epoch_alone() -> None:
    rows, starts = np.arange(200), starts_of(10, 200)
    first = order_rows(rows, chunk_starts=starts, seed=1, epoch=0)
    assert np.array_equal(first, order_rows(rows, chunk_starts=starts, seed=1, epoch=0))
    assert not np.array_equal(first, order_rows(rows, chunk_starts=starts, seed=1, epoch=1))
    assert not np.array_equal(first, order_rows(rows, chunk_starts=starts, seed=2, epoch=0))


def test_samples_go_on_from_one_epoch_to_the_next() -> None:
    rows = np.arange(5, 25)
    order = SampleOrder(ChosenRows.of(rows, starts_of(3, 25)), seed=1)
    whole = order.rows_at(0, 60)
    for start, count in ((0, 20), (20, 20), (40, 20)):
        assert sorted(whole[start : start + count]) == rows.tolist()
    fresh = SampleOrder(ChosenRows.of(rows, starts_of(3, 25)), seed=1)
    assert np.array_equal(fresh.rows_at(33, 14), whole[33:47])


@pytest.mark.parametrize(("world", "batch_size"), [(1, 10), (2, 11), (3, 128), (4, 10), (4, 31)])
def test_shares_make_up_the_batch_and_follow_each_other(world: int, batch_size: int) -> None:
    starts = starts_of(16, 700)
    order = SampleOrder(ChosenRows.of(np.arange(3, 700), starts), seed=2)
    rows = np.stack([order.rows_at(start, batch_size) for start in (0, 690)])  # the end of an epoch
    shares = [
        divide_batch(rows, chunk_starts=starts, rank=rank, world=world) for rank in range(world)
    ]
    assert {share.shape[-1] for share in shares} <= {batch_size // world, -(-batch_size // world)}
    for index, batch in enumerate(rows):
        places = [share[index] for share in shares]
        assert sorted(np.concatenate(places)) == list(range(batch_size))
        ends = [batch[each].min() // 16 for each in places[1:]]
        assert all(
            (batch[each] // 16).max() <= end for each, end in zip(places, ends, strict=False)
        )


@pytest.mark.parametrize("world", [2, 3, 4])
def test_most_chunks_are_read_by_one_worker_alone(world: int) -> None:
    """All workers together read little more than one would alone, not `world` times as much."""
    starts = starts_of(64, 100 * 64)
    order = SampleOrder(ChosenRows.of(np.arange(100 * 64), starts), seed=5)
    window = BUFFER_CHUNKS * 64
    alone, together = 0, 0
    for start in range(0, 10 * window, window):
        rows = order.rows_at(start, window).reshape(-1, 128)
        alone += len(np.unique(rows // 64))
        for rank in range(world):
            places = divide_batch(rows, chunk_starts=starts, rank=rank, world=world)
            together += len(np.unique(np.take_along_axis(rows, places, axis=-1) // 64))
    assert alone == 10 * BUFFER_CHUNKS
    assert together < (1 + 0.3 * (world - 1)) * alone


def test_a_worker_reads_ahead_what_its_own_shares_need() -> None:
    dataset = make_dataset("memory://data/ahead", normals=200)
    rows = choose_rows(dataset, "train", Label.NORMAL)
    order = SampleOrder(ChosenRows.of(rows, dataset.chunk_starts), seed=3)
    images = TrainingImages(dataset, make_settings(cache_bytes=0))
    assert isinstance(images._images, HostImages)
    streamed = images._images.images
    assert isinstance(streamed, StreamedImages)
    images.read_batch(0, 16, rank=2, world=3)
    images.read_batch(16, 16, rank=2, world=3)  # by now the first has asked for a window ahead
    needed: set[int] = set()
    for start in range(0, 8 * 16, 16):
        batch = order.rows_at(start, 16)
        places = divide_batch(batch, chunk_starts=dataset.chunk_starts, rank=2, world=3)
        needed |= set((batch[places] // 4).tolist())
    everyones = set((order.rows_at(0, 8 * 16) // 4).tolist())
    assert set(streamed._chunks) <= needed < everyones


# Parts of one whole; smaller than a chunk of 4; with an odd last chunk.
@pytest.mark.parametrize("part_images", [1024, 3, 14])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("place", [HELD, STREAMED, ON_DEVICE])
def test_workers_share_one_sequence(world: int, place: dict[str, Any], part_images: int) -> None:
    dataset = make_dataset(f"memory://data/shared-{part_images}", part_images=part_images)
    alone = TrainingImages(dataset, make_settings(images=RANDOM_VIEWS))
    settings = make_settings(images=RANDOM_VIEWS, **place)
    teams = [TrainingImages(dataset, settings) for _ in range(world)]
    starts = dataset.chunk_starts
    order = SampleOrder(ChosenRows.of(choose_rows(dataset, "train", Label.NORMAL), starts), seed=3)
    for start in (0, 10, 30):  # the last one straddles two epochs
        batch = np.empty((10, 32, 32, 1), np.uint8)
        rows = order.rows_at(start, 10)
        for rank, images in enumerate(teams):
            places = divide_batch(rows, chunk_starts=starts, rank=rank, world=world)
            batch[places] = images.read_batch(start, 10, rank=rank, world=world)
        assert np.array_equal(batch, alone.read_batch(start, 10))


@pytest.mark.parametrize("place", [HELD, STREAMED, ON_DEVICE])
@pytest.mark.parametrize(
    ("channels", "views", "recorded"),
    [
        (1, RANDOM_VIEWS, "89220bf1636fceaa"),
        (3, RANDOM_VIEWS, "6cd89b0dbf2d5cbf"),
        (3, ImageSettings(flips_at_random=True), "9b819b847494c9d0"),
        (1, ImageSettings(), "d8583ff63aee2206"),
    ],
)
def test_the_sequence_is_the_recorded_one(
    place: dict[str, Any], channels: int, views: ImageSettings, recorded: str
) -> None:
    dataset = make_dataset(f"memory://data/recorded-{channels}", channels=channels)
    images = TrainingImages(dataset, make_settings(images=views, **place))
    batches = [images.read_batch(start, 10).numpy().tobytes() for start in range(0, 200, 10)]
    assert sha256(b"".join(batches)).hexdigest()[:16] == recorded


def test_a_batch_is_the_same_whatever_was_asked_for_before() -> None:
    dataset = make_dataset("memory://data/jumps")
    settings = make_settings(images=RANDOM_VIEWS, cache_bytes=0)
    in_turn = TrainingImages(dataset, settings)
    batches = {start: in_turn.read_batch(start, 6) for start in range(0, 48, 6)}
    jumping = TrainingImages(dataset, settings)
    for start in (30, 36, 0, 6, 6, 42, 12):
        assert np.array_equal(jumping.read_batch(start, 6), batches[start])
        share, _ = in_turn.members_at(start, 6, rank=1, world=2)
        whole, _ = in_turn.members_at(start, 6)
        half = np.isin(whole, share)  # within an epoch none comes twice
        read = jumping.read_batch(start, 6, rank=1, world=2)
        assert len(read) == 3
        assert np.array_equal(read, batches[start][half])


def test_streamed_images_equal_held_ones_and_keep_few_chunks() -> None:
    dataset = make_dataset("memory://data/streamed")
    rows = np.arange(0, 56, 3)
    streamed = open_images(dataset, rows, cache_bytes=0, cached_chunks=2)
    held = open_images(dataset, rows, cache_bytes=2**30, cached_chunks=2)
    assert isinstance(streamed, StreamedImages)
    assert isinstance(held, ImagesInMemory)
    wanted = np.array([54, 0, 21, 3, 54])
    streamed.expect(rows)
    assert np.array_equal(streamed.read_rows(wanted), held.read_rows(wanted))
    assert len(streamed._chunks) <= 2
    expected = np.concatenate([dataset.read_images(row, row + 1) for row in wanted])
    assert np.array_equal(held.read_rows(wanted), expected)


def test_views_are_cut_by_y_and_x() -> None:
    images = np.arange(2 * 6 * 5 * 1, dtype=np.uint8).reshape(2, 6, 5, 1)
    views = Views(np.array([[2, 1], [0, 0]]), np.array([[False, True], [True, False]]), 3)
    y, x = locate_pixels(views, torch.device("cpu"))
    gathered = images[np.arange(2)[:, None, None], y[:, :, None], x[:, None, :]]
    for taken in (cut_views(images, views), gathered):
        assert np.array_equal(taken[0], images[0, 2:5, 1:4][:, ::-1])
        assert np.array_equal(taken[1], images[1, 0:3, 0:3][::-1])


def test_a_gpu_holds_images_that_take_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = make_dataset("memory://data/fitting")
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    needed = 10 * HEIGHT * WIDTH
    fits = partial(fits_on_device, dataset, 10)
    for free, expected in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        assert fits(cuda, where="auto") is expected
    assert not fits(cpu, where="auto")
    assert fits(cpu, where="always")
    assert not fits(cuda, where="never")


def test_drawn_views_cover_every_place_evenly() -> None:
    samples = np.arange(20_000)
    views = draw_views(samples, size_yx=(HEIGHT, WIDTH), settings=RANDOM_VIEWS, seed=7)
    counts_y = np.bincount(views.origins_yx[:, 0], minlength=9)
    counts_x = np.bincount(views.origins_yx[:, 1], minlength=3)
    assert len(counts_y) == HEIGHT - 32 + 1
    assert len(counts_x) == WIDTH - 32 + 1
    assert counts_y.min() > 0.9 * 20_000 / 9
    assert counts_x.min() > 0.9 * 20_000 / 3
    assert np.allclose(views.flips_yx.mean(0), 0.5, atol=0.02)
    assert abs(np.corrcoef(views.flips_yx[:, 0], views.flips_yx[:, 1])[0, 1]) < 0.03


def test_a_view_depends_on_its_sample_alone() -> None:
    whole = draw_views(np.arange(50), size_yx=(90, 70), settings=RANDOM_VIEWS, seed=7)
    part = draw_views(np.arange(20, 50, 3), size_yx=(90, 70), settings=RANDOM_VIEWS, seed=7)
    assert np.array_equal(part.origins_yx, whole.origins_yx[20:50:3])
    assert np.array_equal(part.flips_yx, whole.flips_yx[20:50:3])


def test_tensors_are_averaged_down_and_range_from_minus_one_to_one() -> None:
    images = np.zeros((1, 4, 4, 2), np.uint8)
    images[0, :2, 2:, 1] = [[255, 255], [255, 0]]
    found = to_tensor(images, resolution=2)
    expected = torch.tensor([[[-1.0, -1], [-1, -1]], [[-1, 0.5], [-1, -1]]])
    assert torch.allclose(found[0], expected)


def test_leaking_datasets_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset(str(tmp_path / "leaking"), leaks=True)
    with pytest.raises(SchemaError, match=r"g0 .*train, validation"):
        check_trainable(dataset, make_settings())


def test_datasets_without_normals_are_refused() -> None:
    dataset = make_dataset("memory://data/empty", normals=0)
    with pytest.raises(SchemaError, match="no readable normal image"):
        check_trainable(dataset, make_settings())


def test_too_small_images_are_refused_with_both_numbers() -> None:
    dataset = make_dataset("memory://data/small")
    growth = {
        "initial_resolution": 32,
        "final_resolution": 64,
        "fade_in_iterations": 1,
        "stabilize_iterations": 1,
        "batch_sizes": 4,
    }
    layers = {32: {"relu1_1": 1}, 64: {"relu1_1": 1}}
    loss = {"layers": layers, "vgg_weights": "random", "vgg_width": 8}
    with pytest.raises(SettingsError, match=r"64 px, but .* 40 x 34 px"):
        check_trainable(dataset, make_settings(growth=growth, loss=loss))
