from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2lab
from sklearn.decomposition import dict_learning, sparse_encode

from pipeline.slides.stain.fit import fit_stains
from pipeline.slides.stain.normalise import (
    REFERENCE_STAINS,
    StainFit,
    StainMethod,
    Stains,
    measure_density,
    normalise_stains,
    unmix,
)
from tests.support.made.stains import METHODS, PINK, PURPLE, SHAPE, paint, require_stains


def list_tissue(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The definition: optical densities of the pixels whose CIE lightness is below 80 %."""
    is_tissue = rgb2lab(tiles)[..., 0] < 80
    density: NDArray[np.float64] = -np.log(np.maximum(tiles[is_tissue], 1) / 255.0)
    return density


def put_haematoxylin_first(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return matrix[::-1] if matrix[0, 0] < matrix[1, 0] else matrix


def define_macenko(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macenko et al. 2009, section 2, step by step."""
    _, _, directions = np.linalg.svd(density, full_matrices=False)
    first, second = directions[0] * np.sign(directions[0].sum()), directions[1]
    angles = [np.arctan2(pixel @ second, pixel @ first) for pixel in density]
    extremes = (np.percentile(angles, 1), np.percentile(angles, 99))
    return put_haematoxylin_first(
        np.array([np.cos(angle) * first + np.sin(angle) * second for angle in extremes])
    )


def define_vahadane(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vahadane et al. 2016, equation 5, with a general solver and another start."""
    start = density[[11, 500]] / np.linalg.norm(density[[11, 500]], axis=1, keepdims=True)
    _, matrix, _ = dict_learning(
        density,
        2,
        alpha=0.1,
        max_iter=2000,
        tol=1e-10,
        method="cd",
        dict_init=start,
        code_init=np.ones((len(density), 2)),
        positive_dict=True,
        positive_code=True,
        method_max_iter=5000,
        random_state=0,
    )
    return put_haematoxylin_first(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def define_concentrations(
    density: NDArray[np.float64], matrix: NDArray[np.float64], method: StainMethod
) -> NDArray[np.float64]:
    if method == "macenko":
        return np.asarray(np.linalg.lstsq(matrix.T, density.T)[0].T, np.float64)
    lasso: NDArray[np.float64] = sparse_encode(
        density, matrix, algorithm="lasso_cd", alpha=0.01, positive=True, max_iter=5000
    )
    return lasso


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_parity_with_published_definition(method: StainMethod) -> None:
    tiles = paint(PURPLE)[:1]
    density = list_tissue(tiles)
    assert 1_000 < len(density) < tiles[..., 0].size  # some pixels are too light to count
    fitted = require_stains(fit_stains(tiles, method))

    matrix = {"macenko": define_macenko, "vahadane": define_vahadane}[method](density)
    np.testing.assert_allclose(
        fitted.matrix, matrix, atol={"macenko": 2e-6, "vahadane": 1e-4}[method]
    )
    maxima = np.percentile(define_concentrations(density, fitted.matrix, method), 99, axis=0)
    np.testing.assert_allclose(fitted.max_concentrations, maxima, atol=1e-4)

    every = -np.log(np.maximum(tiles.reshape(-1, 3), 1) / 255.0)
    concentrations = define_concentrations(every, matrix, method)
    scaled = concentrations * REFERENCE_STAINS.max_concentrations / maxima
    published = np.clip(255 * np.exp(-scaled @ REFERENCE_STAINS.matrix), 0, 255)
    normalised = normalise_stains(tiles, fit_stains(tiles, method))
    assert np.abs(normalised.reshape(-1, 3) - published).max() < 0.6  # half a level is rounding


def test_lasso_is_exact_in_every_region() -> None:
    # Densities beside both stains too, where one concentration or both are zero.
    rng = np.random.default_rng(5)
    density = rng.normal(0.3, 0.6, (500, 3))
    exact = sparse_encode(
        density, PURPLE, algorithm="lasso_cd", alpha=0.2, positive=True, max_iter=5000
    )
    assert {tuple(row) for row in (exact > 0).tolist()} == {
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    }
    ours = unmix([*density.T], PURPLE, "vahadane", sparsity=0.2)
    np.testing.assert_allclose(np.stack(ours, axis=1), exact, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_stains_that_were_painted_are_found(method: StainMethod) -> None:
    stains = require_stains(fit_stains(paint(PINK), method))
    unit = PINK / np.linalg.norm(PINK, axis=1, keepdims=True)
    cosines = np.clip((stains.matrix * unit).sum(axis=1), -1, 1)
    # Sparsity pulls the dictionary's stains towards each other: that is in the definition.
    assert np.degrees(np.arccos(cosines)).max() < {"macenko": 1.0, "vahadane": 5.0}[method]


@pytest.mark.parametrize("method", METHODS)
def test_two_scanners_become_alike(method: StainMethod) -> None:
    scans = [paint(PURPLE), paint(PINK, gains=(1.0, 0.9))]
    ours = [normalise_stains(scan, fit_stains(scan, method)) for scan in scans]
    before, after = (np.abs(np.subtract(*pair, dtype=np.int16)).mean() for pair in (scans, ours))
    assert after < before / 4


@pytest.mark.parametrize("method", METHODS)
def test_target_is_reached(method: StainMethod) -> None:
    target = require_stains(fit_stains(paint(PINK), method))
    tiles = paint(PURPLE)
    reached = require_stains(
        fit_stains(normalise_stains(tiles, fit_stains(tiles, method), target), method)
    )
    # Sparsity draws Vahadane's stains together, so that a second fit is not quite the first.
    np.testing.assert_allclose(reached.matrix, target.matrix, atol=0.06)
    np.testing.assert_allclose(reached.max_concentrations, target.max_concentrations, rtol=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_own_stains_as_target_change_next_to_nothing(method: StainMethod) -> None:
    tiles = paint(PINK)
    fit = fit_stains(tiles, method)
    same = normalise_stains(tiles, fit, require_stains(fit))
    assert same.shape == tiles.shape
    difference = np.abs(np.subtract(same, tiles, dtype=np.int16))
    # Sparsity lightens a little, and colours outside the two stains move to their side.
    assert difference.max() <= {"macenko": 1, "vahadane": 16}[method]
    assert difference.mean() < {"macenko": 0.3, "vahadane": 2.0}[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_tile_does_not_depend_on_its_batch(method: StainMethod) -> None:
    tiles = paint(PURPLE)
    fit = fit_stains(tiles, method)
    together = normalise_stains(tiles, fit)
    for index, tile in enumerate(tiles):
        np.testing.assert_array_equal(normalise_stains(tile, fit), together[index])
    turned = normalise_stains(np.ascontiguousarray(tiles[:, ::-1].swapaxes(1, 2)), fit)
    np.testing.assert_array_equal(turned, together[:, ::-1].swapaxes(1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_sample(method: StainMethod) -> None:
    tiles = paint(PURPLE)
    fits = [fit_stains(tiles, method, seed=seed, max_pixels=1_500) for seed in (1, 1, 2)]
    assert fits[0] == fits[1]
    assert fits[0] != fits[2]
    whole = require_stains(fit_stains(tiles, method))
    np.testing.assert_allclose(require_stains(fits[0]).matrix, whole.matrix, atol=0.03)


def make_degenerate() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    haematoxylin = rng.gamma(3.0, 0.3, (*SHAPE, 1)) * PURPLE[0]
    few = np.full((*SHAPE, 3), 244, np.uint8)
    few[1, :5, :7] = paint(PURPLE)[1, :5, :7]
    return {
        "white": np.full((*SHAPE, 3), 255, np.uint8),
        "black": np.zeros((*SHAPE, 3), np.uint8),
        "one colour": np.full((*SHAPE, 3), (120, 60, 140), np.uint8),
        "one stain": np.rint(255 * np.exp(-haematoxylin)).astype(np.uint8),
        "a speck": few,
        "nothing": np.zeros((0, 4, 6, 3), np.uint8),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", make_degenerate())
def test_without_two_stains_tiles_stay_as_they_are(name: str, method: StainMethod) -> None:
    tiles = make_degenerate()[name]
    fit = fit_stains(tiles, method)
    assert fit.is_degenerate
    assert fit.reason
    np.testing.assert_array_equal(normalise_stains(tiles, fit), make_degenerate()[name])


def test_reason_counts_the_tissue() -> None:
    fit = fit_stains(make_degenerate()["a speck"], "macenko", min_tissue_pixels=200)
    assert fit.reason is not None
    assert "200 needed" in fit.reason


@pytest.mark.parametrize("method", METHODS)
def test_black_border_does_not_move_the_stains(method: StainMethod) -> None:
    tiles = paint(PURPLE)
    border = np.zeros_like(tiles)
    bordered = np.concatenate([tiles, border])
    assert fit_stains(bordered, method, seed=4).stains is not None
    np.testing.assert_allclose(
        require_stains(fit_stains(bordered, method)).matrix,
        require_stains(fit_stains(tiles, method)).matrix,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8), np.zeros(3, np.uint8)]
)
def test_what_is_not_rgb_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(\.\.\., 3\)"):
        fit_stains(pixels, "vahadane")
    with pytest.raises(ValueError, match=r"uint8 \(\.\.\., 3\)"):
        normalise_stains(pixels, StainFit("vahadane", REFERENCE_STAINS))


def test_a_target_without_stain_is_refused() -> None:
    with pytest.raises(ValueError, match="max_concentrations must be positive"):
        Stains((0.6, 0.7, 0.3), (0.1, 0.9, 0.2), (1.9, 0.0))
    with pytest.raises(ValueError, match="stain colours must be finite"):
        Stains((0.6, 0.7, 0.3), (0.1, float("nan"), 0.2), (1.9, 1.0))


def test_density_of_black_is_finite() -> None:
    red, green, blue = measure_density(np.array([[0, 1, 255]], np.uint8))
    assert (red[0], green[0], blue[0]) == (red[0], red[0], 0.0)
    assert red[0] == pytest.approx(np.log(255))
