"""Group-disjoint splits, and the check that no patient or slide is divided.

>>> assign_splits(["p1", "p1", "p2"], [0, 1, 0], ["", "", "train"], seed=0,
...               validation_fraction=0.5, test_fraction=0.5).tolist()
['validation', 'validation', 'train']
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import SchemaError
from pipeline.records import SPLITS, Label

_NAMED_LEAKS: Final = 5  # an error that names ten thousand patients helps nobody


def assign_splits(
    group_ids: Sequence[str] | NDArray[np.generic],
    labels: ArrayLike,
    official: Sequence[str] | NDArray[np.generic],
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
) -> NDArray[np.str_]:
    """Give every image a split, whole groups at a time.

    An official split is kept, for the whole group. Any other group is placed by a hash of
    `seed` and its id, so that its place depends on no other group. A group that holds an anomaly
    is placed in validation or test, in the ratio of their fractions: training takes normals only.
    (An anomaly that is officially in `train` stays there; training does not take it.)

    Where validation then holds no normal, `validation_fraction` of the training groups that have
    normals is moved there, again by hash and at least one if there are two: a threshold cannot be
    calibrated without normals. This is the only way in which other groups matter to a group.

    Args:
        group_ids: Patient or slide of each image, str (image,).
        labels: Label of each image, int (image,): 0 normal, 1 anomalous, -1 unknown.
        official: Official split of each image, str (image,); empty where there is none.
        seed: Seed of the hash; another seed gives another division.
        validation_fraction: Share of the groups for validation, in [0, 1]; 0 moves none there.
        test_fraction: Share of the groups for test; both together at most 1.

    Returns:
        str (image,): `train`, `validation` or `test`.

    Raises:
        SchemaError: An official split is unknown, or official splits divide a group.
        ValueError: The fractions or lengths are impossible.
    """
    groups = [str(group) for group in group_ids]
    label_of = np.asarray(labels)
    named = [str(split) for split in official]
    if not len(groups) == len(label_of) == len(named):
        raise ValueError(
            f"{len(groups)} group ids, {len(label_of)} labels and {len(named)} official splits: "
            "give one of each an image"
        )
    if min(validation_fraction, test_fraction) < 0 or validation_fraction + test_fraction > 1:
        raise ValueError(
            f"fractions {validation_fraction} and {test_fraction}: give two that are not negative "
            "and add up to at most 1"
        )
    placed = _official_split_of_each(groups, named)
    anomalous = _groups_with(groups, label_of, Label.ANOMALOUS)
    for group in dict.fromkeys(groups):
        if group not in placed:
            place = _place_anomalous if group in anomalous else _place
            placed[group] = place(group, seed, validation_fraction, test_fraction)
    normal = _groups_with(groups, label_of, Label.NORMAL)
    if not any(placed[group] == "validation" for group in normal):
        donors = [group for group in normal if placed[group] == "train"]
        for group in _carve(donors, seed, validation_fraction):
            placed[group] = "validation"
    return np.array([placed[group] for group in groups], dtype=np.str_)


def prove_disjoint(
    group_ids: Iterable[object], splits: Iterable[object], *, item: str = "splits"
) -> None:
    """Prove that no group has images in two splits.

    Args:
        group_ids: Patient or slide of each image, str (image,).
        splits: Split of each image, str (image,).
        item: Name of the table or dataset at fault, for the error.

    Raises:
        SchemaError: A group is divided; the first few are named.
    """
    found: dict[str, set[str]] = {}
    for group, split in set(zip(group_ids, splits, strict=True)):
        found.setdefault(str(group), set()).add(str(split))
    leaking = sorted(group for group, where in found.items() if len(where) > 1)
    if not leaking:
        return
    named = [f"{group} ({', '.join(sorted(found[group]))})" for group in leaking[:_NAMED_LEAKS]]
    more = len(leaking) - len(named)
    raise SchemaError(
        item,
        f"{len(leaking)} of {len(found)} groups are in more than one split: "
        + ", ".join(named)
        + (f" and {more} more" if more else ""),
        "Give all images of a patient or slide the same split",
    )


def _official_split_of_each(groups: Sequence[str], named: Sequence[str]) -> dict[str, str]:
    """The official split of each group that has one."""
    unknown = sorted(set(named) - {"", *SPLITS})
    if unknown:
        raise SchemaError(
            "splits", f"unknown split `{unknown[0]}`", f"Use one of {', '.join(SPLITS)}"
        )
    pairs = [(group, split) for group, split in zip(groups, named, strict=True) if split]
    prove_disjoint(*zip(*pairs, strict=True) if pairs else ((), ()), item="official splits")
    return dict(pairs)


def _groups_with(groups: Sequence[str], labels: NDArray[np.generic], label: Label) -> set[str]:
    return {group for group, known in zip(groups, labels, strict=True) if known == label}


def _draw(seed: int, purpose: str, group: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = sha256(f"{seed}/{purpose}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _place(group: str, seed: int, validation_fraction: float, test_fraction: float) -> str:
    drawn = _draw(seed, "split", group)
    if drawn < test_fraction:
        return "test"
    return "validation" if drawn < test_fraction + validation_fraction else "train"


def _place_anomalous(
    group: str, seed: int, validation_fraction: float, test_fraction: float
) -> str:
    held_out = validation_fraction + test_fraction
    drawn = _draw(seed, "split", group)
    return "validation" if drawn * held_out < validation_fraction else "test"


def _carve(donors: Sequence[str], seed: int, fraction: float) -> list[str]:
    """Training groups that validation takes: never all of them."""
    if len(donors) < 2 or fraction <= 0:
        return []
    drawn = sorted((_draw(seed, "carve", group), group) for group in donors)
    count = sum(share < fraction for share, _ in drawn)
    return [group for _, group in drawn[: min(max(count, 1), len(drawn) - 1)]]
