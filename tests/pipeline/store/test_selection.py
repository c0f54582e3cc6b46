"""Choosing images of a dataset, and its tables."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import xarray

from pipeline.errors import SchemaError, SettingsError
from pipeline.io.storage import join
from pipeline.store.dataset import Dataset
from tests.support.toys import HEIGHT, WIDTH, make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    url = str(tmp_path_factory.mktemp("toys") / "a.zarr")
    blur = np.linspace(0, 1, 56).astype(np.float32)
    # Parts of 10 rows in chunks of 4: the last chunk of each part has 2.
    return make_dataset(url, part_images=10, measured={"blur": blur}, more={"site": "north"})


def test_a_condition_chooses_rows_of_all_parts(dataset: Dataset) -> None:
    chosen = dataset.images("split == 'validation' and label == 1")
    expected = np.flatnonzero(
        (dataset.column("split") == "validation") & (dataset.column("label") == 1)
    )
    assert chosen.rows.tolist() == expected.tolist()
    assert len(chosen) == 8
    assert np.array_equal(chosen[:], dataset.read_images(0, 56)[expected])


def test_a_mask_chooses_the_same(dataset: Dataset) -> None:
    mask = dataset.column("blur") > 0.5
    assert dataset.images(mask).rows.tolist() == dataset.images("blur > 0.5").rows.tolist()


def test_a_selection_is_indexed_like_an_array(dataset: Dataset) -> None:
    chosen, images = dataset.images(), dataset.read_images(0, 56)
    assert chosen[13].shape == (HEIGHT, WIDTH, 1)
    assert np.array_equal(chosen[13], images[13])
    assert np.array_equal(chosen[-1], images[-1])
    assert np.array_equal(chosen[8:23], images[8:23])
    places = np.array([40, 3, 21, 3])
    assert np.array_equal(chosen[places], images[places])


def test_iterating_reads_each_chunk_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read, chunks = dataset.open_chunks(), []

    def count(chunk: int) -> object:
        chunks.append(chunk)
        return read(chunk)

    monkeypatch.setattr(Dataset, "open_chunks", lambda _: count)
    found = list(dataset.images("label == 0"))
    assert len(found) == 48
    assert chunks == sorted(set(chunks))


def test_an_empty_selection_has_no_image(dataset: Dataset) -> None:
    nothing = dataset.images("label == 7")
    assert len(nothing) == 0
    assert list(nothing) == []
    assert nothing[:].shape == (0, HEIGHT, WIDTH, 1)


@pytest.mark.parametrize("where", ["colour == 3", "label ==", "label + 1"])
def test_a_condition_that_cannot_be_evaluated_is_refused(dataset: Dataset, where: str) -> None:
    with pytest.raises(SettingsError, match=r"Columns: .*blur"):
        dataset.images(where)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("label == 'normal'", r"compares label, no text, with 'normal'\. label is 0 \(normal\)"),
        ("split == 'train' and '0' != label", "compares label, no text, with '0'"),
        ("label in [0, 'anomalous']", "compares label, no text, with 'anomalous'"),
        ("readable == 'True'", r"compares readable, .*\. Give its value without quotes"),
        ("site == 3", r"compares site, a text, with 3\. Give its value in quotes"),
        ("label = 0", r"\. Say `==` for equal\. Columns: .*label"),
    ],
)
def test_what_would_choose_no_row_in_silence_is_refused(
    dataset: Dataset, where: str, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        dataset.images(where)


def test_conditions_that_python_does_not_know_are_left_to_pandas(dataset: Dataset) -> None:
    assert len(dataset.images("`label` == 0 and site == 'north' and split in ['train']")) > 0
    assert len(dataset.images("site.str.startswith('n') and label == True")) == 8


def test_a_mask_of_another_length_is_refused(dataset: Dataset) -> None:
    with pytest.raises(SettingsError, match=r"bool \(3,\), the dataset has 56 rows"):
        dataset.images(np.ones(3, bool))


def test_the_table_has_every_column_and_row(dataset: Dataset) -> None:
    frame = dataset.to_frame()
    assert frame.index.tolist() == list(range(56))
    for name in ("image_id", "split", "label", "blur", "site"):
        assert frame[name].tolist() == dataset.column(name).tolist()
    assert dataset.parts_to_frame()["image_count"].tolist() == [10, 10, 10, 10, 10, 6]


def test_xarray_sees_all_parts_as_one_and_reads_lazily(dataset: Dataset) -> None:
    whole = dataset.to_xarray()
    assert whole["pixels"].chunks is not None
    assert np.array_equal(whole["pixels"][8:13].to_numpy(), dataset.read_images(8, 13))
    assert whole["blur"].to_numpy().tolist() == dataset.column("blur").tolist()
    assert whole["label"].dims == ("image",)


def test_a_part_opened_alone_is_chosen_by_label(dataset: Dataset) -> None:
    start, part = 40, dataset.parts[4]
    opened = xarray.open_zarr(join(dataset.url, part.place))
    anomalies = opened.isel(image=(opened["label"] == 1).compute())
    rows = dataset.images("label == 1").rows
    expected = dataset.read_images(start, start + 10)[rows[rows < start + 10] - start]
    assert 0 < len(expected) < 10
    assert np.array_equal(anomalies["image"].to_numpy(), expected)


def test_its_repr_says_what_it_is(dataset: Dataset) -> None:
    text = repr(dataset)
    for word in ("56", f"{HEIGHT} x {WIDTH} x 1", "6 parts", "toys", dataset.fingerprint[:12]):
        assert word in text


def test_pickled_it_carries_its_name_alone(dataset: Dataset) -> None:
    data = pickle.dumps(dataset)
    assert len(data) < 500
    assert pickle.loads(data).fingerprint == dataset.fingerprint  # noqa: S301 - our own bytes


def test_one_made_anew_is_not_taken_for_the_other(tmp_path: Path) -> None:
    url = str(tmp_path / "a.zarr")
    data = pickle.dumps(make_dataset(url, normals=12))
    make_dataset(url, normals=14)
    with pytest.raises(SchemaError, match="has changed while it was read"):
        pickle.loads(data)  # noqa: S301 - our own bytes
