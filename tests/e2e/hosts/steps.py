"""The steps of the chain for both modalities, and how the content that two made is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from pipeline.ingest.verify import verify_dataset
from pipeline.io import storage
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset
from pipeline.synthetic import write_slides, write_xrays
from tests.e2e.hosts.disturbances import Modality, Step
from tests.e2e.hosts.findings import compare_weights, digest_weights

LAKE: Final = "s3://lake"
TRAINING: Final = f"{LAKE}/state/training"
CALM: Final = "calm"
MODALITIES: Final[tuple[Modality, ...]] = ("slides", "xrays")
WEIGHTS_TOLERANCE: Final = 1e-5
_MODELS: Final[Mapping[Modality, str]] = {
    "slides": "camelyon16-anomaly",
    "xrays": "chestxray14-anomaly",
}


@dataclass(frozen=True)
class Work:
    """One step of the chain, ready to be triggered.

    Args:
        deployment: Name of the deployment.
        parameters: Parameters of the flow.
        output: Folder in which objects appear once the step is at work.
    """

    deployment: str
    parameters: Mapping[str, object]
    output: str

    def has_begun(self) -> bool:
        """Whether it has written something: it is in the middle then."""
        return any(info.size_bytes for info in storage.list_objects(self.output))


def write_scans() -> None:
    """Write the synthetic slides and radiographs to the hosts' S3."""
    shape = (3072, 4096)
    write_slides(
        f"{LAKE}/scans/slides", normal_count=8, tumor_count=2, test_count=2, shape_yx=shape
    )
    write_xrays(f"{LAKE}/scans/xrays", seed=1, patients=100, size_px=256)


def plan_step(step: Step, modality: Modality, name: str) -> Work:
    """What to trigger for a step.

    Args:
        step: Step of the chain.
        modality: Images that it works on.
        name: Name of this repeat, which its output bears.
    """
    dataset, model = f"{LAKE}/{CALM}/{modality}", _MODELS[modality]
    if step == "ingest":
        output = f"{LAKE}/{name}/{modality}"
        shards = {"shard_images": 64} if modality == "slides" else {}
        asked = {"source": f"{LAKE}/scans/{modality}", "dataset": output, **shards}
        return Work(f"ingest-{modality}/default", asked, output)
    if step == "train":
        run_name = f"{modality}-{name}"
        asked = {"dataset": dataset, "preset": "demo", "workers": 2, "run_name": run_name}
        return Work("train/default", asked, f"{TRAINING}/{run_name}/checkpoints")
    output = f"{LAKE}/{name}/scores-{modality}"
    more = {"workers": 2, "top_heatmaps": 4, "splits": ["train", "validation", "test"]}
    asked = {"source": dataset, "output": output, "model_name": model, **more}
    return Work("score/default", asked, output)


def plan_promotion(modality: Modality) -> Work:
    """What to trigger to promote the model of a modality.

    Args:
        modality: Images that it was trained on.
    """
    dataset = f"{LAKE}/{CALM}/{modality}"
    asked = {"model_name": _MODELS[modality], "dataset": dataset, "wait_s": 0}
    return Work("promote/default", asked, f"{LAKE}/state/ledgers")


def plan_search() -> Work:
    """What to trigger for a search on slides."""
    asked = {"dataset": f"{LAKE}/{CALM}/slides", "preset": "demo", "trials": 2, "run_name": CALM}
    return Work("search/default", asked, f"{LAKE}/state/search/{CALM}")


def describe(step: Step, modality: Modality) -> str:
    """What the calm run of a step has made, in a few words.

    Args:
        step: Step of the chain.
        modality: Images that it worked on.
    """
    if step == "ingest":
        dataset = open_dataset(f"{LAKE}/{CALM}/{modality}")
        return f"{dataset.image_count} images, fingerprint {dataset.fingerprint[:12]}"
    if step == "train":
        return f"weights {digest_weights(TRAINING, f'{modality}-{CALM}')[:12]}"
    scores = read_scores(modality, CALM)
    return f"{len(scores)} rows, mean score {np.mean(list(scores.values())):.6f}"


def compare(step: Step, modality: Modality, name: str) -> str:
    """Compare what a repeat has made with what the calm run has; words of the difference.

    Args:
        step: Step of the chain.
        modality: Images that it worked on.
        name: Name of the repeat.
    """
    if step == "ingest":
        calm, other = (open_dataset(f"{LAKE}/{each}/{modality}") for each in (CALM, name))
        assert other.fingerprint == calm.fingerprint, "the fingerprints differ"
        report = verify_dataset(other.url, map_serially)
        assert not report.damages, report.damages
        return f"same fingerprint {calm.fingerprint[:12]}, every digest right"
    if step == "train":
        difference = compare_weights(TRAINING, f"{modality}-{CALM}", f"{modality}-{name}")
        assert difference <= WEIGHTS_TOLERANCE, f"weights differ by {difference:g}"
        return f"weights differ by {difference:g}"
    calm_scores, scores = read_scores(modality, CALM), read_scores(modality, name)
    assert scores.keys() == calm_scores.keys(), "other images were scored"
    difference = max(abs(scores[each] - calm_scores[each]) for each in scores)
    assert difference <= WEIGHTS_TOLERANCE, f"scores differ by {difference:g}"
    return f"{len(scores)} rows, scores differ by {difference:g}"


def read_scores(modality: Modality, name: str) -> dict[str, float]:
    """Score of each image, of which every image has one row.

    Args:
        modality: Images that were scored.
        name: Name of the repeat.
    """
    url = f"{LAKE}/{name}/scores-{modality}/scores.parquet"
    table = pq.read_table(BytesIO(storage.read_bytes(url)))
    names = table["image_id"].to_pylist()
    dataset = open_dataset(f"{LAKE}/{CALM}/{modality}")
    assert len(names) == len(set(names)), "an image has two rows"
    assert len(names) == dataset.image_count, f"{len(names)} rows for {dataset.image_count} images"
    return dict(zip(names, table["anomaly_score"].to_pylist(), strict=True))
