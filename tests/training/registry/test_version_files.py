"""A version's files are compared with the ledger before any of its code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.errors import RegistryError
from pipeline.io import storage
from pipeline.store.dataset import Dataset
from tests.support.registered import NAME, own_mlflow, register
from training.registry import versions
from training.registry.champion import read_ledger
from training.registry.promotion import check_reproduction, promote
from training.registry.versions import load_version, record_files, resolve

EVIL = "from pathlib import Path\nPath({trace!r}).touch()\n"


@pytest.fixture
def home(tmp_path: Path, dataset: Dataset) -> Iterator[Path]:
    """An MLflow with one version."""
    with own_mlflow(tmp_path):
        register(dataset)
        yield tmp_path


def find_file(home: Path, name: str) -> Path:
    """A file of the version, where the artifact store keeps it."""
    (path,) = (home / "artifacts").rglob(name)
    return path


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def promote_it(home: Path, dataset: Dataset) -> None:
    promote(NAME, dataset.url, ledgers_url=str(home / "ledgers"))


@pytest.mark.parametrize(
    ("name", "tamper", "said"),
    [
        ("artifacts/network.safetensors", flip_a_bit, r"network\.safetensors was changed"),
        ("artifacts/threshold.json", flip_a_bit, r"threshold\.json was changed"),
        ("MLmodel", flip_a_bit, "MLmodel was changed"),
        ("scorer.py", lambda path: (path.parent / "numpy.py").touch(), r"numpy\.py was added"),
        ("code/pipeline/errors.py", Path.unlink, r"code/pipeline/errors\.py is missing"),
    ],
)
def test_a_file_that_was_touched_is_named_and_nothing_is_loaded(
    home: Path, dataset: Dataset, name: str, tamper: Callable[[Path], None], said: str
) -> None:
    load_version(NAME, "1")
    tamper(find_file(home, name))
    for use in (lambda: load_version(NAME, "1"), lambda: promote_it(home, dataset)):
        with pytest.raises(RegistryError, match=rf"{NAME}/1: its files are not .*{said}.*restore"):
            use()
    assert read_ledger(NAME, str(home)).champion is None


@pytest.mark.parametrize("name", ["scorer.py", "code/training/scoring/detector.py"])
def test_code_that_was_put_into_the_store_does_not_run(
    home: Path, dataset: Dataset, name: str, tmp_path: Path
) -> None:
    model = load_version(NAME, "1")
    images = np.zeros((2, *dataset.image_shape), np.uint8)
    scores = model.predict(images).anomaly_score
    trace = tmp_path / "it ran"
    script = find_file(home, name)
    script.write_text(script.read_text() + EVIL.format(trace=str(trace)))
    with pytest.raises(RegistryError, match=r"was changed"):
        check_reproduction(model, images, scores)
    assert not trace.exists()
    # The same code, recorded by somebody who trusts it, does run: the trace would show it.
    ledger_url, _ = versions.read_verified(NAME)
    storage.delete(storage.join(ledger_url, "00000001.json"))
    record_files(resolve(NAME, "1"), ledgers_url=str(home / "ledgers"))
    check_reproduction(model, images, scores)
    assert trace.exists()


def test_a_version_without_digests_is_refused_until_a_person_vouches_for_it(
    home: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier_release:
        earlier_release.setattr(versions, "record_files", lambda *_, **__: None)
        version = register(dataset)
    for use in (lambda: load_version(NAME, "2"), lambda: promote_it(home, dataset)):
        with pytest.raises(RegistryError, match=r"/2: the ledger has no digests.*normscope adopt"):
            use()
    said = {"name": "A. Reader", "reason": "compared with our backup"}
    for _ in range(2):  # again changes nothing
        record_files(version, ledgers_url="elsewhere", answer=said)
    first, second = read_ledger(NAME, "elsewhere").entries
    assert first.summary == f"version 1, {len(first.content['files'])} files"  # type: ignore[arg-type]  # a mapping
    assert second.summary.endswith("files, by A. Reader: compared with our backup")
    load_version(NAME, "2")


def test_nobody_can_vouch_for_other_files_than_those_registered(home: Path) -> None:
    flip_a_bit(find_file(home, "scorer.py"))
    with pytest.raises(RegistryError, match=r"scorer\.py was changed"):
        record_files(resolve(NAME, "1"), ledgers_url="", answer={"name": "A", "reason": "b"})


def test_a_model_made_anew_under_an_old_name_gets_digests_of_its_own(
    home: Path, dataset: Dataset
) -> None:
    MlflowClient().delete_registered_model(NAME)
    assert register(dataset, seed=5).version == "1"
    load_version(NAME, "1")
    assert [entry.kind for entry in read_ledger(NAME, str(home)).entries] == ["registered"] * 2
