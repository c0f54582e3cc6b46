"""Versions of registered models: register, load, find by alias, tag."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from pydantic import ValidationError

import training
from pipeline.errors import RegistryError
from pipeline.io import storage
from pipeline.records import JSON
from training.evaluation.calibration import Calibration, Threshold
from training.registry.ledger import Entry, append, read_entries, require_known
from training.registry.mlflow_errors import translated
from training.registry.version_files import digest_folder, find_digests, require_files
from training.scoring.detector import DESCRIPTION, FEATURES, NETWORK, Detector
from training.scoring.loaded_model import IngestRecord, ScoringModel

with warnings.catch_warnings():
    # MLflow warns of its own type hints while this is imported.
    warnings.simplefilter("ignore", UserWarning)
    import mlflow.pyfunc

CHALLENGER: Final = "challenger"
CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"

LEDGER_TAG: Final = "ledger"
ENTRY_TAG: Final = "ledger_entry"
HEAD_TAG: Final = "ledger_head"

_FILES: Final = {
    "model": DESCRIPTION,
    "network": NETWORK,
    "features": FEATURES,
    "ingest": "ingest.json",
    "calibration": "calibration.json",
    "threshold": "threshold.json",
}
_RECORDS: Final = ("ingest", "calibration", "threshold")
_MOST_VERSIONS: Final = 10_000  # of a model, in one answer of MLflow
# Libraries that the model's code imports where it is loaded without this package.
_REQUIREMENTS: Final = ("mlflow", "numpy", "torch", "safetensors", "pydantic")
# The modules that score, which each version keeps a copy of.
_CODE: Final = (
    "pipeline/errors.py",
    "pipeline/runtime/malloc.py",
    "training/settings.py",
    "training/networks/*.py",
    "training/evaluation/calibration.py",
    "training/scoring/detector.py",
)


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One registered version.

    Args:
        name: Name of the registered model.
        version: Number of the version.
        run_id: Identifier of the MLflow run that made the version.
        tags: Tags of the version, by key.
    """

    name: str
    version: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """MLflow's URI of the version."""
        return f"models:/{self.name}/{self.version}"


def log_and_register(
    detector: Detector,
    *,
    name: str,
    run_id: str,
    ingest: IngestRecord,
    calibration: Calibration,
    threshold: Threshold,
    ledgers_url: str,
) -> VersionInfo:
    """Log a detector to its run, register it, and give it the alias `challenger`.

    The digests of its files go into the model's ledger.

    Args:
        detector: Trained detector with its weights.
        name: Name of the registered model, `<source>-anomaly`.
        run_id: Identifier of the training's MLflow run.
        ingest: Record of how the training images were prepared.
        calibration: Scores of the validation split's normal images.
        threshold: Score above which an image counts as anomalous.
        ledgers_url: Folder in which the ledger is made if the model has none yet.
    """
    with tempfile.TemporaryDirectory() as folder:
        detector.save(Path(folder))
        for key, record in zip(_RECORDS, (ingest, calibration, threshold), strict=True):
            Path(folder, _FILES[key]).write_text(record.model_dump_json(indent=1) + "\n")
        with _within_run(run_id), warnings.catch_warnings():
            # The signature says it all, and an example would be a page of zeros.
            warnings.filterwarnings("ignore", message=".*input example was not provided")
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("scorer.py")),
                artifacts={key: str(Path(folder, file)) for key, file in _FILES.items()},
                code_paths=_copy_code(Path(folder, "code")),
                signature=_sign(detector.description.image_shape),
                pip_requirements=[f"{name}=={installed_version(name)}" for name in _REQUIREMENTS],
            )
    tags = {
        "dataset_fingerprint": ingest.fingerprint,
        "modality": ingest.modality,
        "feature_weights": detector.description.settings.loss.vgg_weights,
    }
    with translated(name):
        version = str(mlflow.register_model(logged.model_uri, name, tags=tags).version)
    record_files(resolve(name, version), ledgers_url=ledgers_url)
    set_alias(name, CHALLENGER, version)
    return resolve(name, version)


def record_files(
    found: VersionInfo, *, ledgers_url: str, answer: Mapping[str, JSON] | None = None
) -> None:
    """Keep the digests of a version's files in the model's ledger, unless they are there already.

    Args:
        found: Version whose files are meant.
        ledgers_url: Folder in which the ledger is made if the model has none yet.
        answer: `name` and `reason` of a person who vouches for the files; None for those that
            this process has just registered.

    Raises:
        RegistryError: The ledger has other digests of the version, or is not what was written.
    """
    url, entries = claim_ledger(found.name, ledgers_url)
    with _download(found) as folder:
        files = digest_folder(folder)
    recorded = find_digests(entries, found.version, found.run_id)
    if recorded is not None:
        require_files(found.uri, files, recorded)
        return
    content: dict[str, JSON] = {
        "model_name": found.name,
        "version": found.version,
        "run_id": found.run_id,
        "files": dict(files),
        "answer": dict(answer or {}),
    }
    append(url, "registered", content)


@contextmanager
def verified_files(found: VersionInfo) -> Iterator[Path]:
    """Download the files of a version and compare them with the ledger, for as long as a block.

    Args:
        found: Version whose files are meant.

    Yields:
        Folder of the files, exactly as they were registered.

    Raises:
        RegistryError: A file was changed, added or removed since, or nobody has recorded them.
    """
    _, entries = read_verified(found.name)
    recorded = find_digests(entries, found.version, found.run_id)
    if recorded is None:
        raise RegistryError(
            found.uri,
            "the ledger has no digests of its files, so that nobody knows whose code they are",
            "Train it again, or vouch for the files with `normscope adopt`",
        )
    with _download(found) as folder:
        require_files(found.uri, digest_folder(folder), recorded)
        yield folder


@contextmanager
def _download(found: VersionInfo) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        with translated(found.uri):
            local = mlflow.artifacts.download_artifacts(found.uri, dst_path=folder)
        yield Path(local)


def load_champion(name: str) -> ScoringModel:
    """Load the version that scores.

    Raises:
        RegistryError: There is no such model, or no version was promoted yet.
    """
    return load_version(name, CHAMPION)


def load_version(name: str, version_or_alias: str, *, device: str | None = None) -> ScoringModel:
    """Load a version by its number or alias; nothing is unpickled.

    Args:
        name: Name of the registered model.
        version_or_alias: Number of a version, or an alias such as `champion`.
        device: Device that scores, e.g. `cpu`; a GPU if there is one by default.

    Raises:
        RegistryError: There is none, it does not load, or its files are not those registered.
    """
    found = resolve(name, version_or_alias)
    with verified_files(found) as folder, _of_this_release(found):
        local = folder / "artifacts"
        texts = {key: Path(local, _FILES[key]).read_text() for key in _RECORDS}
        return ScoringModel(
            found.name,
            found.version,
            found.run_id,
            Detector.load(local, device=device),
            IngestRecord.model_validate_json(texts["ingest"]),
            Calibration.model_validate_json(texts["calibration"]),
            Threshold.model_validate_json(texts["threshold"]),
        )


def read_ingest(found: VersionInfo) -> IngestRecord:
    """Read how a version's training images were prepared, without loading its weights.

    Raises:
        RegistryError: There is no such record, or another release wrote it.
    """
    with translated(found.uri), _of_this_release(found):
        text = mlflow.artifacts.load_text(f"{found.uri}/artifacts/{_FILES['ingest']}")
        return IngestRecord.model_validate_json(text)


def resolve(name: str, version_or_alias: str) -> VersionInfo:
    """Find a version by its number or alias.

    Raises:
        RegistryError: There is none.
    """
    with translated(name):
        client, known = MlflowClient(), aliases(name)
        version = known.get(version_or_alias, version_or_alias)
        if not version.isdecimal():
            problem = f"no version has the alias {version_or_alias!r}"
            remedy = f"It has {', '.join(sorted(known)) or 'none'}; or give a version's number"
            if version_or_alias == CHAMPION:
                problem += ": none was promoted yet, or the champion was deleted in MLflow"
                remedy = "Run `normscope promote`, or `normscope rollback` for the one before"
            raise RegistryError(name, problem, remedy)
        found = client.get_model_version(name, version)
    return VersionInfo(name, str(found.version), str(found.run_id), dict(found.tags))


def recover_version(name: str, run_id: str, *, ledgers_url: str) -> VersionInfo | None:
    """Find the version that a run has registered, and finish its registration.

    A version newer than the challenger was registered by a run that was killed before it set the
    alias; its files are recorded, and it becomes the challenger now.

    Args:
        name: Name of the registered model.
        run_id: Identifier of the run.
        ledgers_url: Folder in which the ledger is made if the model has none yet.

    Returns:
        The version, or None if the run has registered none.
    """
    with translated(name):
        found = MlflowClient().search_model_versions(f"name='{name}' and run_id='{run_id}'")
    if not found:
        return None
    version = str(found[0].version)
    if int(version) > int(aliases(name).get(CHALLENGER, 0)):
        record_files(resolve(name, version), ledgers_url=ledgers_url)
        set_alias(name, CHALLENGER, version)
    return resolve(name, version)


def list_versions(name: str) -> frozenset[str]:
    """List the numbers of all versions of a model that MLflow still has.

    Raises:
        RegistryError: The server does not answer.
    """
    with translated(name):
        found = MlflowClient().search_model_versions(f"name='{name}'", max_results=_MOST_VERSIONS)
    return frozenset(str(each.version) for each in found)


def aliases(name: str) -> dict[str, str]:
    """List every alias of a model with the version that it names.

    Raises:
        RegistryError: There is no such model.
    """
    with translated(name):
        known = MlflowClient().get_registered_model(name).aliases
    return {alias: str(version) for alias, version in known.items()}


def tracking_uri() -> str:
    """URL of the MLflow server or database in use."""
    return str(mlflow.get_tracking_uri())


def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias to a version."""
    with translated(name):
        MlflowClient().set_registered_model_alias(name, alias, version)


def delete_alias(name: str, alias: str) -> None:
    """Remove an alias, if it is there."""
    with translated(name):
        MlflowClient().delete_registered_model_alias(name, alias)


def model_tags(name: str) -> dict[str, str]:
    """Read the tags of a registered model."""
    with translated(name):
        return dict(MlflowClient().get_registered_model(name).tags)


def run_tags(run_id: str) -> dict[str, str]:
    """Read the tags of a run."""
    with translated(run_id):
        return dict(MlflowClient().get_run(run_id).data.tags)


def tag_model(name: str, key: str, value: str) -> None:
    """Set a tag of a registered model."""
    with translated(name):
        MlflowClient().set_registered_model_tag(name, key, value)


def read_verified(name: str, ledgers_url: str | None = None) -> tuple[str, tuple[Entry, ...]]:
    """Read and verify the ledger that a model's tag names.

    Args:
        name: Name of the registered model.
        ledgers_url: Folder of the ledger if the model has none yet; None finds no entries then.

    Returns:
        Folder or prefix of the ledger, and its entries.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    tags = model_tags(name)
    url = tags.get(LEDGER_TAG) or (storage.join(ledgers_url, name) if ledgers_url else "")
    entries = read_entries(url) if url else ()
    require_tagged(url, entries, tags)
    return url, entries


def require_tagged(url: str, entries: Sequence[Entry], tags: Mapping[str, str]) -> None:
    """Check that a ledger has every entry that the registry's tags of its model refer to.

    Args:
        url: Folder or prefix of the ledger.
        entries: All entries of the ledger.
        tags: Tags of the registered model.

    Raises:
        RegistryError: An entry is missing or differs.
    """
    for tag in (ENTRY_TAG, HEAD_TAG):
        require_known(url, entries, tags.get(tag, ""))


def claim_ledger(name: str, ledgers_url: str) -> tuple[str, tuple[Entry, ...]]:
    """Read a model's ledger to append to it; a model without one gets it tagged.

    The last entry is tagged too: a ledger that is lost later is not taken for a new one.

    Args:
        name: Name of the registered model.
        ledgers_url: Folder in which the ledger is made if the model has none yet.

    Raises:
        RegistryError: There is no such model, or its ledger is not what was written.
    """
    url, entries = read_verified(name, ledgers_url)
    tags = model_tags(name)
    if LEDGER_TAG not in tags:
        tag_model(name, LEDGER_TAG, url)
    if entries and entries[-1].reference != tags.get(HEAD_TAG):
        tag_model(name, HEAD_TAG, entries[-1].reference)
    return url, entries


def tag_version(found: VersionInfo, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    with translated(found.name):
        for key, value in tags.items():
            MlflowClient().set_model_version_tag(found.name, found.version, key, value)


def log_record(run_id: str, path: str, content: str | Mapping[str, JSON]) -> None:
    """Log a text, or a mapping as JSON, as an artifact of a run."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    with translated(run_id):
        MlflowClient().log_text(run_id, text, path)


def _sign(image_shape: tuple[int, int, int]) -> ModelSignature:
    def tensor(dtype: str, name: str, *shape: int) -> TensorSpec:
        return TensorSpec(np.dtype(dtype), (-1, *shape), name)

    images = TensorSpec(np.dtype("uint8"), (-1, *image_shape))
    answers: list[ColSpec | TensorSpec] = [
        tensor("float32", "anomaly_score"),
        tensor("float64", "percentile"),
        tensor("bool", "is_anomalous"),
        tensor("float32", "embedding", -1),
    ]
    heatmaps = ParamSpec("heatmaps", "boolean", default=False)
    return ModelSignature(Schema([images]), Schema(answers), ParamSchema([heatmaps]))


def _copy_code(folder: Path) -> list[str]:
    """Copy the modules that score into packages in a folder, and return those."""
    root = Path(training.__path__[0]).parent
    files = {file for pattern in _CODE for file in root.glob(pattern)}
    packages = {parent for file in files for parent in file.relative_to(root).parents[:-1]}
    for file in files:
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    for package in packages:  # without the names that they export here
        (folder / package / "__init__.py").touch()
    return [str(package) for package in folder.iterdir()]


@contextmanager
def _within_run(run_id: str) -> Iterator[None]:
    """Make a run the active one, whether it is active already or has ended."""
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield
        return
    with mlflow.start_run(run_id=run_id, nested=active is not None):
        yield


@contextmanager
def _of_this_release(found: VersionInfo) -> Iterator[None]:
    """Refuse a version whose files this release cannot read."""
    try:
        yield
    except (ValidationError, FileNotFoundError, RuntimeError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            detail = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        elif isinstance(error, RuntimeError) and "state_dict" not in str(error):
            raise  # not a network with other parameters, but e.g. a lack of memory
        else:
            detail = str(error).splitlines()[0]
        raise RegistryError(
            found.uri,
            f"was registered by another release of Normscope ({detail})",
            "Train and register it again with `normscope train`",
        ) from error
