"""Group-disjoint splits, and the check that no patient or slide is divided.

>>> assign_splits(["p1", "p1", "p2"], [0, 1, 0], ["", "", "train"], seed=0,
...               validation_fraction=0.5, test_fraction=0.5).tolist()
['validation', 'validation', 'train']
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import SchemaError
from pipeline.records import SPLITS, Label, Split

_NAMED_LEAKS: Final = 5  # an error that names ten thousand patients helps nobody


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What the split of a slide depends on.

    Args:
        slide_id: Unique in the dataset.
        group_id: Patient or, where none is known, the slide.
        digest: Digest of the slide's bytes, equal for copies; empty where unknown.
        official: Split that the source or the user's sheet names; empty where there is none.
        label: Label of the whole slide: 0 normal, 1 anomalous, -1 unknown.
        has_lesion: Whether a lesion is outlined on it, however small.
    """

    slide_id: str
    group_id: str
    digest: str = ""
    official: str = ""
    label: int = Label.UNKNOWN
    has_lesion: bool = False

    @property
    def is_anomalous(self) -> bool:
        """Whether its label or an outlined lesion says so."""
        return self.has_lesion or self.label == Label.ANOMALOUS


def assign_slide_splits(
    slides: Sequence[SlideFacts],
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
) -> list[str]:
    """Give every slide a split: patients undivided, copies together, no known lesion in training.

    Groups that share a slide of the same bytes are kept together, official splits or not. Where
    their official splits differ, the one that holds out more counts for all of them: `test` before
    `validation` before `train`. So a copy can take a slide out of training, and can put none there.

    A group that is officially in `train` but holds an anomalous slide, or is kept together with
    one that does, goes to `validation`: a few labelled anomalies choose the hyperparameters
    (Shvetsova et al. 2021, section 4). All else is as in `assign_splits`;
    `explain_slide_splits` says which official splits were not kept.

    Args:
        slides: Facts of all slides of the dataset; their order does not matter.
        seed: Seed of the hash; another seed gives another division.
        validation_fraction: Share of the groups for validation, in [0, 1].
        test_fraction: Share of the groups for test; both together at most 1.

    Returns:
        `train`, `validation` or `test` for each slide.

    Raises:
        SchemaError: An official split is unknown, or official splits divide a patient.
        ValueError: The fractions are impossible.
    """
    groups = [slide.group_id for slide in slides]
    official_of = _official_split_of_each(groups, [slide.official for slide in slides])
    joined = _join_copies(slides)
    anomalous = {joined[slide.group_id] for slide in slides if slide.is_anomalous}
    held_out: dict[str, str] = {}
    for slide in slides:
        named, name = official_of.get(slide.group_id, ""), joined[slide.group_id]
        if named == "train" and name in anomalous:
            named = "validation"
        if named:
            held_out[name] = max(held_out.get(name, named), named, key=_rank)
    splits = assign_splits(
        groups,
        [Label.ANOMALOUS if slide.is_anomalous else slide.label for slide in slides],
        [held_out.get(joined[group], "") for group in groups],
        joined=joined,
        seed=seed,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
    )
    return [str(split) for split in splits]


def explain_slide_splits(slides: Sequence[SlideFacts], splits: Sequence[str]) -> dict[str, str]:
    """Explain which slides are not in their official split, and why.

    Args:
        slides: Facts as given to `assign_slide_splits`.
        splits: Splits that `assign_slide_splits` has returned.

    Returns:
        Id of each such slide -> a remark for the manifest.
    """
    anomalous = {slide.group_id for slide in slides if slide.is_anomalous}
    copies: dict[str, list[SlideFacts]] = defaultdict(list)
    for slide in slides:
        copies[slide.digest].append(slide)
    remarks = {}
    for slide, split in zip(slides, splits, strict=True):
        if slide.official in {"", split}:
            continue
        others = [o.slide_id for o in copies[slide.digest] if slide.digest and o is not slide]
        if split == "validation" and slide.group_id in anomalous:
            reason = "it or another slide of its patient is anomalous, and training takes normals"
        elif others:
            reason = f"{others[0]} has the same bytes, and copies share a split"
        else:
            reason = "it is kept together with copies, or validation held no normal slide"
        remarks[slide.slide_id] = (
            f"its official split is {slide.official}, but it is in {split}: {reason}"
        )
    return remarks


def assign_splits(
    group_ids: Sequence[str] | NDArray[np.generic],
    labels: ArrayLike,
    official: Sequence[str] | NDArray[np.generic],
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    joined: Mapping[str, str] | None = None,
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
        joined: Group -> name of the set of groups that it stays together with, for every group;
            None where each stands alone. Of the places that the hash gives the groups of a set,
            the one that holds out more counts, so that a group that joins puts none into training.

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
    sets = [joined[group] for group in groups] if joined else groups
    official_of = _official_split_of_each(sets, named)
    anomalous = _groups_with(sets, label_of, Label.ANOMALOUS)
    placed = dict(official_of)
    for group, name in dict.fromkeys(zip(groups, sets, strict=True)):
        if name not in official_of:
            place = _place_anomalous if name in anomalous else _place
            drawn = place(group, seed, validation_fraction, test_fraction)
            placed[name] = max(placed.get(name, drawn), drawn, key=_rank)
    normal = _groups_with(sets, label_of, Label.NORMAL)
    if not any(placed[name] == "validation" for name in normal):
        donors = [name for name in normal if placed[name] == "train"]
        for name in _carve(donors, seed, validation_fraction):
            placed[name] = "validation"
    return np.array([placed[name] for name in sets], dtype=np.str_)


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


def join_groups(ties: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Join groups that share something, such as a study or the bytes of a file.

    Args:
        ties: Pairs of a group and the name of something that it has; an empty name ties nothing.

    Returns:
        Each group -> the first, by name, of all groups that it is tied to, itself among them.

    Examples:
        >>> join_groups([("p1", "s1"), ("p2", "s1"), ("p2", "s2"), ("p3", "s3"), ("p4", "")])
        {'p1': 'p1', 'p2': 'p1', 'p3': 'p3', 'p4': 'p4'}
    """
    parent: dict[str, str] = {}

    def find(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    holder: dict[str, str] = {}  # name of a thing -> a group that has it
    for group, thing in ties:
        parent.setdefault(group, group)
        if thing:
            pair = {find(group), find(holder.setdefault(thing, group))}
            parent[max(pair)] = min(pair)
    return {group: find(group) for group in parent}


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


def _join_copies(slides: Sequence[SlideFacts]) -> dict[str, str]:
    """Map each group to the first, by name, of all groups that copies of slides tie it to."""
    return join_groups([(slide.group_id, slide.digest) for slide in slides])


def _rank(split: str) -> int:
    """Rank splits by how much they hold out."""
    return SPLITS.index(cast("Split", split))


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
