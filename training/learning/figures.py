"""Pictures of a training: reconstructions next to their originals, distributions, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Final, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipeline.records import Label
from training.learning.validation import Gallery, ValidationScores

Curve: TypeAlias = Sequence[tuple[int, float]]

LOSSES: Final = ("train_loss", "validation_loss", "validation_anomaly_loss")
FURTHER_LOSSES: Final = ("pixel_loss", "adversarial_loss", "discriminator_loss")
CURVES: Final = (*LOSSES, *FURTHER_LOSSES, "validation_auroc", "resolution")
"""The metrics that `draw_curves` draws."""

_COLOR_MAP: Final = "viridis"  # ordered by lightness, so it reads without colour vision
_SIDE_PX: Final = 128
_GAP_PX: Final = 4
_BRIGHTEST_QUANTILE: Final = 0.995
_BINS: Final = 40


def draw_gallery(gallery: Gallery) -> bytes:
    """Draw one row per image: original, reconstruction, heatmap; normals first.

    All heatmaps share one scale, from zero to the brightest pixels of the gallery.

    Returns:
        PNG.
    """
    brightest = float(np.quantile(gallery.heatmaps, _BRIGHTEST_QUANTILE)) or 1.0
    height = len(gallery.labels) * (_SIDE_PX + _GAP_PX) - _GAP_PX
    grid = Image.new("RGB", (3 * (_SIDE_PX + _GAP_PX) - _GAP_PX, height), "white")
    for row, (original, made, heatmap) in enumerate(
        zip(gallery.originals, gallery.reconstructions, gallery.heatmaps, strict=True)
    ):
        for column, image in enumerate((original, made, _colour(heatmap / brightest))):
            place = (column * (_SIDE_PX + _GAP_PX), row * (_SIDE_PX + _GAP_PX))
            grid.paste(_enlarge(image), place)
    buffer = BytesIO()
    grid.save(buffer, "PNG")
    return buffer.getvalue()


def draw_distribution(validation: ValidationScores) -> bytes:
    """Draw how the scores of normals and anomalies are distributed.

    Args:
        validation: Scores and labels.

    Returns:
        PNG.
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(validation.scores, _BINS)
    for label, name in ((Label.NORMAL, "normal"), (Label.ANOMALOUS, "anomalous")):
        scores = validation.scores[validation.labels == label]
        if len(scores):
            axes.hist(
                scores, edges.tolist(), alpha=0.6, density=True, label=f"{len(scores)} {name}"
            )
    axes.set(xlabel="anomaly score", ylabel="density")
    axes.legend(frameon=False)
    return _save(figure)


def draw_curves(curves: Mapping[str, Curve]) -> bytes:
    """Draw losses, AUROC and resolution over the steps; further terms in a plot of their own.

    Args:
        curves: (step, value) pairs by the metric's name; missing metrics are left out.

    Returns:
        PNG.
    """
    has_further = any(curves.get(name) for name in FURTHER_LOSSES)
    rows = 3 if has_further else 2
    figure = Figure(figsize=(7, 3 * rows), layout="constrained")
    losses, *further, quality = figure.subplots(rows, 1, sharex=True)
    _plot(losses, curves, LOSSES)
    losses.set_ylabel("relative perceptual loss")
    for axes in further:
        _plot(axes, curves, FURTHER_LOSSES)
        axes.set_ylabel("further terms")
    _plot(quality, curves, ("validation_auroc",))
    quality.set(ylabel="AUROC on validation", xlabel="step", ylim=(0, 1))
    growth = quality.twinx()
    steps, sides = _unzip(curves.get("resolution", ()))
    growth.step(steps, sides, where="post", color="0.7", label="resolution")
    growth.set_ylabel("resolution (px)")
    return _save(figure)


def _save(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plot(axes: Axes, curves: Mapping[str, Curve], names: Sequence[str]) -> None:
    for name in names:
        if curves.get(name):
            axes.plot(*_unzip(curves[name]), label=name.replace("_", " "))
    if axes.lines:
        axes.legend(frameon=False)
    axes.grid(alpha=0.3)


def _unzip(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _colour(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    coloured = mpl.colormaps[_COLOR_MAP](np.clip(values, 0, 1), bytes=True)
    return np.asarray(coloured[..., :3], np.uint8)


def _enlarge(image: NDArray[np.uint8]) -> Image.Image:
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    return Image.fromarray(rgb).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.NEAREST)
