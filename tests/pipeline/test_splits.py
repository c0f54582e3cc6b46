"""Splits: whole groups, no anomaly in training, and nobody moves when others come."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SchemaError
from pipeline.splits import (
    SlideFacts,
    assign_slide_splits,
    assign_splits,
    explain_slide_splits,
    prove_disjoint,
)

IMAGES = st.lists(st.tuples(st.integers(0, 60).map(str), st.sampled_from([-1, 0, 1])), min_size=1)

FACTS = st.lists(
    st.builds(
        SlideFacts,
        slide_id=st.integers(0, 10**9).map(str),
        group_id=st.integers(0, 9).map(str),
        digest=st.sampled_from(["", *"abcdefgh"]),
        label=st.sampled_from([-1, 0, 1]),
        has_lesion=st.booleans(),
    ),
    min_size=1,
    max_size=24,
    unique_by=lambda slide: slide.slide_id,
)
HELD_OUT = ("train", "validation", "test")


def assign_slides(slides: list[SlideFacts], *, seed: int = 3) -> list[str]:
    return assign_slide_splits(slides, seed=seed, validation_fraction=0.2, test_fraction=0.3)


def assign(
    images: list[tuple[str, int]],
    official: list[str] | None = None,
    *,
    seed: int = 3,
    validation: float = 0.2,
    test: float = 0.3,
) -> list[str]:
    splits = assign_splits(
        [group for group, _ in images],
        [label for _, label in images],
        official or [""] * len(images),
        seed=seed,
        validation_fraction=validation,
        test_fraction=test,
    )
    return [str(split) for split in splits]


@given(IMAGES, st.integers(0, 5))
def test_no_group_is_divided_and_no_anomaly_is_trained_on(
    images: list[tuple[str, int]], seed: int
) -> None:
    splits = assign(images, seed=seed)
    prove_disjoint([group for group, _ in images], splits)
    assert set(splits) <= {"train", "validation", "test"}
    assert all(
        split != "train" for (_, label), split in zip(images, splits, strict=True) if label == 1
    )


@given(IMAGES, st.data())
def test_an_official_split_is_kept_for_the_whole_group(
    images: list[tuple[str, int]], data: st.DataObject
) -> None:
    named = data.draw(st.sampled_from(["validation", "test"]))
    first = images[0][0]
    official = [named, *[""] * (len(images) - 1)]
    splits = assign(images, official)
    assert {split for (g, _), split in zip(images, splits, strict=True) if g == first} == {named}


@given(IMAGES, IMAGES)
def test_new_groups_move_nobody(images: list[tuple[str, int]], more: list[tuple[str, int]]) -> None:
    # A normal that is officially in validation, so that nothing is carved from training.
    known = [("anchor", 0), *images]
    newcomers = [(f"new-{group}", label) for group, label in more]
    official = ["validation", *[""] * len(images)]
    before = assign(known, official)
    after = assign(known + newcomers, official + [""] * len(newcomers))
    assert after[: len(before)] == before


def test_the_order_of_the_images_does_not_matter() -> None:
    images = [(str(number), number % 5 == 0) for number in range(50)]
    backwards = assign([(g, int(label)) for g, label in reversed(images)])
    assert assign([(g, int(label)) for g, label in images]) == backwards[::-1]


def test_fractions_and_seed_are_followed() -> None:
    images = [(f"patient {number}", 0) for number in range(4000)]
    splits = np.array(assign(images, validation=0.1, test=0.25))
    shares = [float(np.mean(splits == name)) for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.65, 0.1, 0.25], abs=0.03)
    assert assign(images, seed=4) != assign(images, seed=5)


def test_anomalies_are_held_out_in_the_ratio_of_the_fractions() -> None:
    splits = np.array(assign([(str(n), 1) for n in range(4000)], validation=0.1, test=0.3))
    assert float(np.mean(splits == "validation")) == pytest.approx(0.25, abs=0.03)
    assert set(assign([("a", 1)], validation=0, test=0)) == {"test"}


def test_validation_gets_normals_from_official_training_groups() -> None:
    # Two images a group; validation holds one anomaly and no normal, as in PatchCamelyon's folder.
    images = [(str(n // 2), 0) for n in range(400)] + [("tumour", 1), ("held", 0)]
    splits = assign(images, ["train"] * 400 + ["validation", "test"], validation=0.1)
    prove_disjoint([group for group, _ in images], splits)
    carved = splits[:400].count("validation")
    assert 20 <= carved <= 70
    assert splits[400:] == ["validation", "test"]
    assert assign(images[:4], ["train"] * 4, validation=0.01).count("validation") == 2


def test_nothing_is_carved_where_none_is_wanted_or_one_group_is_all() -> None:
    images = [("a", 0), ("a", 0), ("b", 0)]
    assert assign(images, ["train"] * 3, validation=0) == ["train"] * 3
    assert assign(images[:2], ["train"] * 2) == ["train"] * 2


def test_an_anomaly_officially_in_train_stays_there() -> None:
    assert assign([("a", 1), ("b", 0)], ["train", "validation"]) == ["train", "validation"]


def test_a_divided_group_is_named() -> None:
    with pytest.raises(SchemaError, match=r"1 of 2 groups .* p7 \(test, train\)"):
        prove_disjoint(["p7", "p7", "p8"], ["train", "test", "test"])
    with pytest.raises(SchemaError, match="official splits: 1 of 1 groups"):
        assign([("p7", 0), ("p7", 0)], ["train", "test"])
    with pytest.raises(SchemaError, match="and 4 more"):
        prove_disjoint([str(n) for n in range(9)] * 2, ["train"] * 9 + ["test"] * 9)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(SchemaError, match="unknown split `tuning`"):
        assign([("a", 0)], ["tuning"])
    with pytest.raises(ValueError, match="at most 1"):
        assign([("a", 0)], validation=0.7, test=0.4)
    with pytest.raises(ValueError, match="1 group ids, 2 labels"):
        assign_splits(["a"], [0, 1], [""], seed=0, validation_fraction=0.1, test_fraction=0.1)


@given(FACTS, st.integers(0, 5), st.data())
def test_no_patient_and_no_bytes_are_divided_and_no_lesion_is_trained_on(
    slides: list[SlideFacts], seed: int, data: st.DataObject
) -> None:
    official = data.draw(
        st.dictionaries(st.integers(0, 9).map(str), st.sampled_from(["", *HELD_OUT]), max_size=10)
    )
    slides = [replace(slide, official=official.get(slide.group_id, "")) for slide in slides]
    splits = assign_slides(slides, seed=seed)
    prove_disjoint([slide.group_id for slide in slides], splits)
    known = [(slide.digest, split) for slide, split in zip(slides, splits, strict=True)]
    prove_disjoint(*zip(*[pair for pair in known if pair[0]] or [("", "")], strict=True))
    for slide, split in zip(slides, splits, strict=True):
        assert split in HELD_OUT
        assert split != "train" or not (slide.has_lesion or slide.label == 1)
        # The carving apart, which needs normals, a split is never less held out than is official.
        assert HELD_OUT.index(split) >= HELD_OUT.index(slide.official or "train")


@given(FACTS, st.randoms())
def test_the_order_of_slides_does_not_matter(slides: list[SlideFacts], random: Random) -> None:
    by_id = dict(zip([slide.slide_id for slide in slides], assign_slides(slides), strict=True))
    shuffled = random.sample(slides, len(slides))
    assert assign_slides(shuffled) == [by_id[slide.slide_id] for slide in shuffled]


def test_a_copy_that_is_added_puts_nothing_into_training() -> None:
    anchor = SlideFacts("held.tif", "held.tif", official="validation", label=0)
    slides = [SlideFacts(f"m{n}.tif", f"m{n}.tif", digest=str(n), label=0) for n in range(300)]
    copies = [
        replace(slide, slide_id=f"{'az'[n % 2]}/{slide.slide_id}", group_id=f"{'az'[n % 2]}/{n}")
        for n, slide in enumerate(slides)
    ]
    before = assign_slides([anchor, *slides])[1:]
    after = assign_slides([anchor, *slides, *copies])
    assert after[1:301] == after[301:]
    pairs = list(zip(before, after[1:301], strict=True))
    assert all(HELD_OUT.index(new) >= HELD_OUT.index(old) for old, new in pairs)
    assert any(new != old for old, new in pairs)


def test_two_slides_of_a_patient_stay_together() -> None:
    slides = [SlideFacts(f"{p}-DX{n}.svs", f"p{p}", label=0) for p in range(200) for n in (1, 2)]
    splits = assign_slides(slides)
    assert splits[::2] == splits[1::2]
    assert set(splits) == set(HELD_OUT)


def test_slides_of_small_lesions_are_never_trained_on() -> None:
    slides = [SlideFacts(f"{n}.tif", f"{n}.tif", has_lesion=True) for n in range(200)]
    assert "train" not in assign_slides(slides)
    assert "train" in assign_slides([replace(slide, has_lesion=False) for slide in slides])


@pytest.mark.parametrize("official", HELD_OUT)
def test_copies_of_official_slides_take_the_official_split(official: str) -> None:
    known = [SlideFacts(f"n{n}", f"n{n}", str(n), official, label=0) for n in range(20)]
    copies = [SlideFacts(f"c{n}", f"c{n}", str(n), label=0) for n in range(20)]
    validation = SlideFacts("held", "held", official="validation", label=0)
    splits = assign_slides([*known, *copies, validation])
    assert splits == [*[official] * 40, "validation"]


def test_of_the_official_splits_of_copies_the_one_that_holds_out_more_counts() -> None:
    slides = [
        SlideFacts("a", "a", "same", "train", label=0),
        SlideFacts("b", "b", "same", "test", label=0),
        SlideFacts("c", "patient", "same", label=0),
        SlideFacts("d", "patient", "other", label=0),
        SlideFacts("e", "e", "own", "validation", label=0),
    ]
    splits = assign_slides(slides)
    assert splits == ["test", "test", "test", "test", "validation"]
    remarks = explain_slide_splits(slides, splits)
    assert remarks == {
        "a": "its official split is train, but it is in test: b has the same bytes, and copies "
        "share a split"
    }


def test_a_patient_in_training_with_a_tumour_goes_to_validation() -> None:
    slides = [
        SlideFacts("normal", "p", official="train", label=0),
        SlideFacts("tumour", "p", official="train", label=1),
        SlideFacts("other", "q", official="train", label=0),
    ]
    splits = assign_slides(slides)
    assert splits == ["validation", "validation", "train"]
    remarks = explain_slide_splits(slides, splits)
    assert set(remarks) == {"normal", "tumour"}
    assert "anomalous" in remarks["normal"]


def test_an_official_split_that_divides_a_patient_is_refused() -> None:
    slides = [SlideFacts("a", "p7", official="train"), SlideFacts("b", "p7", official="test")]
    with pytest.raises(SchemaError, match=r"official splits: .* p7 \(test, train\)"):
        assign_slides(slides)


def test_a_lesion_on_a_copy_in_another_group_holds_out_an_official_train_group() -> None:
    # The official slide has no copy itself; its patient's other slide has one, with a lesion.
    slides = [
        SlideFacts("a", "p", official="train"),
        SlideFacts("b", "p", "bytes"),
        SlideFacts("c", "q", "bytes", has_lesion=True),
    ]
    found = assign_slide_splits(slides, seed=0, validation_fraction=0.2, test_fraction=0.2)
    assert found == ["validation"] * 3
