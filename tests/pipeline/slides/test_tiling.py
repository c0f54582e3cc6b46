from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.slides.tiling import (
    Choice,
    Grid,
    account_for_tissue,
    choose_level,
    list_origins,
    make_grid,
    measure_mask_fractions,
    measure_tile_extent_yx,
    order_along_z,
    prove_account,
)

sides = st.integers(1, 400)
pairs = st.tuples(sides, sides)
strides = st.tuples(st.integers(3, 90), st.integers(3, 90))


@given(shape_yx=pairs, extent_yx=pairs, stride_yx=strides)
def test_tiles_stay_inside_and_none_comes_twice(
    shape_yx: tuple[int, int], extent_yx: tuple[int, int], stride_yx: tuple[int, int]
) -> None:
    origins = list_origins(shape_yx, extent_yx, stride_yx)
    assert origins.dtype == np.int64
    assert (origins >= 0).all()
    assert (origins + extent_yx <= shape_yx).all()
    assert len(np.unique(origins, axis=0)) == len(origins)
    fitting = [
        max(0, (shape - extent) // stride + 1) if shape >= extent else 0
        for shape, extent, stride in zip(shape_yx, extent_yx, stride_yx, strict=True)
    ]
    assert len(origins) == fitting[0] * fitting[1]


@given(shape_yx=pairs, extent_yx=pairs, stride_yx=strides)
def test_swapping_both_axes_swaps_the_tiles(
    shape_yx: tuple[int, int], extent_yx: tuple[int, int], stride_yx: tuple[int, int]
) -> None:
    origins = list_origins(shape_yx, extent_yx, stride_yx)
    swapped = list_origins(shape_yx[::-1], extent_yx[::-1], stride_yx[::-1])
    assert {(y, x) for y, x in origins.tolist()} == {(y, x) for x, y in swapped.tolist()}


def test_tiles_go_row_by_row() -> None:
    assert list_origins((5, 7), (2, 3), (2, 3)).tolist() == [[0, 0], [0, 3], [2, 0], [2, 3]]


def test_a_tile_larger_than_the_slide_does_not_fit() -> None:
    assert list_origins((10, 50), (11, 5), (11, 5)).shape == (0, 2)


def test_extent_follows_each_axis_own_mpp() -> None:
    assert measure_tile_extent_yx((0.25, 0.5), 1.0, 64) == (256, 128)
    assert measure_tile_extent_yx((0.499, 0.243), 1.0, 64) == (128, 263)


def test_nominal_mpp_may_be_missed_but_nothing_is_enlarged() -> None:
    assert measure_tile_extent_yx((0.2527, 0.2527), 0.25, 256) == (253, 253)
    with pytest.raises(ValueError, match=r"0\.5 um/px.*0\.25 um/px: tile with `--mpp-um 0\.5`"):
        measure_tile_extent_yx((0.25, 0.5), 0.25, 256)


@pytest.mark.parametrize(
    ("wanted_yx", "level"),
    [
        ((1, 1), 0),
        ((3.9, 3.9), 0),
        ((4, 4), 1),
        ((15, 15), 1),
        ((16, 16), 2),
        ((99, 99), 2),
        ((16, 4), 1),
        ((4, 16), 1),
        ((0.98, 0.98), 0),
    ],
)
def test_level_is_the_coarsest_that_loses_nothing(
    wanted_yx: tuple[float, float], level: int
) -> None:
    assert choose_level([(1, 1), (4.03, 4.0), (16.1, 16.0)], wanted_yx) == level


def test_level_minds_both_axes_of_an_anisotropic_pyramid() -> None:
    assert choose_level([(1, 1), (2, 8)], (4, 4)) == 0
    assert choose_level([(1, 1), (2, 8)], (2, 8)) == 1


@given(
    data=st.data(),
    mask_yx=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    scale_yx=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_fractions_equal_counting_at_full_resolution(
    data: st.DataObject, mask_yx: tuple[int, int], scale_yx: tuple[int, int], seed: int
) -> None:
    mask = np.random.default_rng(seed).random(mask_yx) < 0.5
    full = np.kron(mask, np.ones(scale_yx, bool))
    extent_yx = (
        data.draw(st.integers(1, full.shape[0])),
        data.draw(st.integers(1, full.shape[1])),
    )
    origins = list_origins((full.shape[0], full.shape[1]), extent_yx, (2, 3))
    assume(len(origins))
    expected = [
        full[y : y + extent_yx[0], x : x + extent_yx[1]].mean() for y, x in origins.tolist()
    ]
    measured = measure_mask_fractions(mask, (full.shape[0], full.shape[1]), origins, extent_yx)
    np.testing.assert_allclose(measured, expected, atol=1e-9)


def test_fraction_of_a_known_corner() -> None:
    mask = np.zeros((4, 10), bool)
    mask[0, 9] = True  # the upper right corner of a wide slide
    origins = np.array([[0, 900], [0, 0], [300, 900], [50, 850]])
    measured = measure_mask_fractions(mask, (400, 1000), origins, (100, 100))
    np.testing.assert_allclose(measured, [1.0, 0.0, 0.0, 0.25])


def test_nothing_is_covered_outside_of_the_slide() -> None:
    mask = np.ones((3, 5), bool)
    measured = measure_mask_fractions(mask, (30, 50), np.array([[20, 40]]), (20, 40))
    np.testing.assert_allclose(measured, [10 * 10 / (20 * 40)])


def test_tiles_are_ordered_by_squares_of_squares() -> None:
    origins = list_origins((5 * 10 + 3, 6 * 30 + 2), (10, 30), (10, 30))
    ordered = origins[order_along_z(origins, (10, 30))]
    assert sorted(map(tuple, ordered.tolist())) == sorted(map(tuple, origins.tolist()))
    cells = ordered // (10, 30)
    assert cells[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]
    assert cells[:16].max(axis=0).tolist() == [3, 3]
    # The grid is cut off at the right: what there is of the next square, then the one below.
    assert cells[16:24].min(axis=0).tolist() == [0, 4]
    assert cells[24:28].tolist() == [[4, 0], [4, 1], [4, 2], [4, 3]]


def test_overlapping_tiles_of_one_cell_go_row_by_row() -> None:
    origins = np.array([[13, 8], [0, 9], [3, 1], [3, 0], [12, 2]])
    assert order_along_z(origins, (10, 20)).tolist() == [1, 3, 2, 4, 0]


# A mask pixel is 10 level-0 px high and 20 wide; tiles of 14 x 30 every 10 x 40 px.
MASK_SHAPE, SLIDE_SHAPE = (9, 13), (90, 260)
EXTENT, STRIDE = (14, 30), (10, 40)


def make_mask() -> NDArray[np.bool_]:
    return np.random.default_rng(3).random(MASK_SHAPE) < 0.6


def divide(grid: Grid) -> Choice:
    """Give every tile a fate: four of about a quarter each."""
    fates = [np.flatnonzero(np.arange(len(grid.origins_yx)) % 4 == fate) for fate in range(4)]
    chosen, below, outside, not_sampled = fates
    return Choice(chosen, np.zeros(len(chosen), np.float32), below, outside, not_sampled)


def test_the_account_is_what_counting_single_pixels_gives() -> None:
    mask = make_mask()
    grid = make_grid(mask, SLIDE_SHAPE, EXTENT, STRIDE)
    choice = divide(grid)
    account = account_for_tissue(mask, SLIDE_SHAPE, grid, choice)
    names = ("tiled", "below_min_tissue", "outside_lesions", "not_sampled")
    fates = (choice.chosen, choice.below, choice.outside, choice.not_sampled)
    full = np.kron(mask, np.ones((10, 20), bool))
    fate_of = np.full(SLIDE_SHAPE, "outside_tiles", object)
    for name, tiles in zip(names, fates, strict=True):
        for y, x in grid.origins_yx[tiles].tolist():
            fate_of[y : y + 10, x : x + 30] = name  # no later tile covers this part
    expected = {name: float(full[fate_of == name].sum()) for name in (*names, "outside_tiles")}
    assert account == pytest.approx({"tissue": float(full.sum()), **expected})
    assert min(account.values()) > 0


@given(
    mask_yx=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shape_yx=pairs,
    extent_yx=pairs,
    stride_yx=strides,
)
def test_an_account_adds_up_whatever_the_sizes(
    mask_yx: tuple[int, int],
    shape_yx: tuple[int, int],
    extent_yx: tuple[int, int],
    stride_yx: tuple[int, int],
) -> None:
    mask = np.random.default_rng(0).random(mask_yx) < 0.5
    grid = make_grid(mask, shape_yx, extent_yx, stride_yx)
    account = account_for_tissue(mask, shape_yx, grid, divide(grid))
    total = account.pop("tissue")
    assert total == pytest.approx(mask.mean() * shape_yx[0] * shape_yx[1])
    assert sum(account.values()) == pytest.approx(total)


def test_an_account_of_halved_tiles_is_refused() -> None:
    mask = make_mask()
    grid = make_grid(mask, SLIDE_SHAPE, EXTENT, STRIDE)
    halved = replace(grid, tissue_px2=grid.tissue_px2 / 2)
    with pytest.raises(RuntimeError, match="does not add up: tiled"):
        account_for_tissue(mask, SLIDE_SHAPE, halved, divide(grid))


def test_an_account_that_forgets_a_tile_is_refused() -> None:
    mask = make_mask()
    grid = make_grid(mask, SLIDE_SHAPE, EXTENT, STRIDE)
    choice = divide(grid)
    forgetful = replace(choice, below=choice.below[1:])
    with pytest.raises(RuntimeError, match="all fates together"):
        account_for_tissue(mask, SLIDE_SHAPE, grid, forgetful)


def test_an_account_that_counts_a_tile_twice_is_refused() -> None:
    mask = make_mask()
    grid = make_grid(mask, SLIDE_SHAPE, EXTENT, STRIDE)
    choice = divide(grid)
    twice = replace(choice, not_sampled=np.append(choice.not_sampled, choice.below[1]))
    with pytest.raises(RuntimeError, match="below_min_tissue"):
        account_for_tissue(mask, SLIDE_SHAPE, grid, twice)


def test_an_account_is_proved_to_a_millionth_of_its_tissue() -> None:
    account = {"tissue": 2e6, "tiled": 1.5e6, "outside_tiles": 0.5e6}
    prove_account(account, {"tiled": 1.5e6 + 1}, 1e7)
    with pytest.raises(RuntimeError, match="tiled cover 1500000 px"):
        prove_account(account, {"tiled": 1.5e6 + 3}, 1e7)
    with pytest.raises(RuntimeError, match="all fates together"):
        prove_account(account | {"outside_tiles": 0.4e6}, {"tiled": 1.5e6}, 1e7)
