"""Artefacts are told by quality, against the usual images of the same batch."""

from __future__ import annotations

import numpy as np

from training.worklist.artefacts import find_limits, mark_artefacts


def mark(columns: dict[str, np.ndarray], is_usual: np.ndarray) -> list[tuple[str, ...]]:
    """Mark images by comparison with some of them."""
    limits = find_limits(lambda name: columns[name][is_usual], columns)
    return mark_artefacts(columns, limits, len(is_usual))


def make_columns() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    return {
        "laplacian_variance": draw.uniform(100, 200, 60),
        "pen_fraction": draw.uniform(0, 0.002, 60),
        "blank_fraction": draw.uniform(0, 0.1, 60),
    }


def test_blur_and_pen_are_marked_and_rare_trifles_are_not() -> None:
    columns = make_columns()
    columns["laplacian_variance"][:10] = 150
    columns["laplacian_variance"][3] = 2
    columns["pen_fraction"][[3, 5]] = 0.3
    columns["pen_fraction"][8] = 0.009  # rare here, but next to nothing
    columns["blank_fraction"][9] = np.nan
    is_usual = np.arange(60) >= 10
    marks = mark(columns, is_usual)
    assert marks[3] == ("blurred", "pen")
    assert marks[5] == ("pen",)
    assert not any(marks[place] for place in (0, 8, 9))
    assert sum(map(bool, marks[10:])) <= 1


def test_without_attributes_or_usual_images_nothing_is_marked() -> None:
    columns = make_columns()
    columns["pen_fraction"][0] = 1
    assert mark({}, np.ones(3, bool)) == [(), (), ()]
    assert not any(mark(columns, np.arange(60) < 19))
    assert mark(columns, np.arange(60) > 0)[0] == ("pen",)
