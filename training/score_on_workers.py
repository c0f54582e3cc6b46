"""Score a dataset by a registered version on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import SchemaError
from pipeline.records import Progress, Split, ignore_progress
from pipeline.store.dataset import open_dataset
from training.cluster.connection import Share
from training.cluster.map import ray_engine
from training.registry.versions import load_version
from training.score import ScoreReport, score_dataset


def score_on_workers(
    dataset_url: str,
    output_url: str,
    *,
    model_name: str,
    model_version: str,
    dataset_fingerprint: str,
    splits: Sequence[Split] | None = None,
    top_heatmaps: int = 200,
    reduced_precision: bool = False,
    notes: Sequence[str] = (),
    workers: int = 1,
    share: Share,
    ray_address: str | None = None,
    on_progress: Progress = ignore_progress,
) -> ScoreReport:
    """Score what is new in a dataset on the workers of a Ray cluster; see `score_dataset`.

    Args:
        dataset_url: Path or URL of a sealed dataset.
        output_url: Folder or prefix of the results; created if absent.
        model_name: Registered name of the model.
        model_version: Version that scores.
        dataset_fingerprint: Fingerprint that the dataset must have.
        splits: Splits to score; all if None.
        top_heatmaps: Number of images, the most anomalous first, that get heatmaps and pictures.
        reduced_precision: Compute features in bfloat16.
        notes: Caveats that the worklist shows first.
        workers: Number of processes that score together.
        share: Cores and GPUs that each worker takes of the cluster.
        ray_address: Address of a Ray cluster; None starts Ray on this machine and stops it again.
        on_progress: Called with images done and in all.

    Raises:
        RegistryError: There is no such version, or it does not load.
        SchemaError: The dataset is unsealed, has changed, or was prepared otherwise than the
            model's.
        StorageError: The output cannot be written.
        WorkersError: The cluster does not answer, lacks cores or GPUs, or workers died repeatedly.
    """
    if open_dataset(dataset_url).fingerprint != dataset_fingerprint:
        problem = "has changed since this scoring was asked for"
        raise SchemaError(dataset_url, problem, "Score again")
    # On the CPU: the workers score, and a GPU here would not be one that Ray knows of.
    model = load_version(model_name, model_version, device="cpu")
    with ray_engine(ray_address, workers=workers, share=share) as map_work:
        return score_dataset(
            dataset_url,
            model.reduce_precision() if reduced_precision else model,
            output_url,
            splits=splits,
            top_heatmaps=top_heatmaps,
            map_work=map_work,
            notes=notes,
            on_progress=on_progress,
        )
