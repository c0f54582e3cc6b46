"""The worklist: one self-contained HTML page of ranked cases, which works offline."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from typing import Any, Final

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from pipeline.records import Label
from pipeline.store.dataset import Dataset
from training.scoring.loaded_model import ScoringModel
from training.scoring.table import RankedScores
from training.worklist.heatmaps import legend_colors

LISTED_CASES: Final = 10_000  # a page that a browser opens at once; scores.parquet has them all
_REFERENCE_SIZE: Final = 201
_JPEG_QUALITY: Final = 90
_LABELS: Final = {Label.NORMAL: "normal", Label.ANOMALOUS: "anomalous", Label.UNKNOWN: ""}


@dataclass(frozen=True)
class WorklistFacts:
    """Facts about the model and the dataset that a page shows.

    Args:
        source: Name of the dataset's source.
        dataset_fingerprint: Fingerprint of the dataset.
        model_name: Registered name of the model.
        model_version: Number of the model's version.
        run_id: MLflow run that trained the version.
        scored_at: Time of the last scoring in UTC, formatted for readers.
        threshold: Score above which an image is called anomalous.
        threshold_words: Sentence that says how the threshold was chosen.
        normal_count: Number of normal images that percentiles compare with.
        reference: Ascending scores of these normal images, or quantiles of them.
        scored_count: Number of images scored, listed or not.
        notes: Caveats shown first, e.g. that the features are random.
    """

    source: str
    dataset_fingerprint: str
    model_name: str
    model_version: str
    run_id: str
    scored_at: str
    threshold: float
    threshold_words: str
    normal_count: int
    reference: Sequence[float]
    scored_count: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CasePictures:
    """Pictures of a case, as data URIs.

    Args:
        image: Data URI of the image.
        heatmap: Data URI of the heatmap to overlay on the image.
        reconstruction: Data URI of the network's reconstruction of the centre crop.
    """

    image: str
    heatmap: str
    reconstruction: str


@dataclass(frozen=True)
class TypicalImage:
    """A typical image of the same batch, to compare with.

    Args:
        image_id: Name of the image in the dataset.
        picture: Data URI of the image.
    """

    image_id: str
    picture: str


@dataclass(frozen=True)
class Case:
    """One ranked image.

    Args:
        image_id: Name of the image in the dataset.
        group_id: Patient or slide of the image.
        anomaly_score: Raw score, higher is more anomalous.
        percentile: Percentage of normal validation images that score lower.
        is_anomalous: Whether the score exceeds the threshold.
        label: Known label of the image, if any.
        pictures: Pictures of the most anomalous images, None for the others.
        nearest: Typical images with the most similar latents, most similar first.
        marks: Artefacts that the image looks like.
    """

    image_id: str
    group_id: str
    anomaly_score: float
    percentile: float
    is_anomalous: bool
    label: Label
    pictures: CasePictures | None = None
    nearest: tuple[TypicalImage, ...] = ()
    marks: tuple[str, ...] = ()


def describe(
    model: ScoringModel, dataset: Dataset, scored: RankedScores, notes: tuple[str, ...] = ()
) -> WorklistFacts:
    """Collect the facts of a page.

    Args:
        model: Version that scored the images.
        dataset: Dataset that was scored.
        scored: Ranked scores of its images, at least one.
        notes: Caveats that the page shows first.
    """
    threshold = model.threshold
    # When the last image was scored: nothing new gives the same page.
    scored_at = scored.scored_at.max().astype("datetime64[s]").item()
    words = (
        f"{threshold.quantile:.0%} of {threshold.normal_count} normal validation images score at "
        "or below it"
    )
    return WorklistFacts(
        source=str(dataset.attributes["source"]),
        dataset_fingerprint=dataset.fingerprint,
        model_name=model.name,
        model_version=model.version,
        run_id=model.run_id,
        scored_at=f"{scored_at:%Y-%m-%d %H:%M} UTC",
        threshold=threshold.value,
        threshold_words=words,
        normal_count=model.calibration.normal_count,
        reference=model.calibration.reference,
        scored_count=len(scored.rows),
        notes=notes,
    )


def render_worklist(facts: WorklistFacts, cases: Sequence[Case]) -> str:
    """Render the page.

    Args:
        facts: Facts about the model and the dataset.
        cases: At most `LISTED_CASES` cases in the order of rank; the first ones have pictures.

    Returns:
        HTML whose security policy forbids it to load anything.
    """
    style, script = (_read_part(f"worklist.{kind}") for kind in ("css", "js"))
    return (
        _templates()
        .get_template("worklist.html.j2")
        .render(
            facts=facts,
            picture_count=sum(case.pictures is not None for case in cases),
            case_count=len(cases),
            legend=legend_colors(9),
            style=Markup(style),  # noqa: S704 -- our own file
            script=Markup(script),  # noqa: S704 -- our own file
            style_digest=_digest(style),
            script_digest=_digest(script),
            content=_content(facts, cases),
        )
    )


def picture_uri(image: NDArray[np.uint8], *, max_side_px: int = 256) -> str:
    """Encode an image as a JPEG in a data URI.

    Args:
        image: uint8 (H, W, 1 or 3).
        max_side_px: Maximum length of the longer side in px; a smaller image keeps its size.
    """
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    picture = Image.fromarray(pixels)
    picture.thumbnail((max_side_px, max_side_px), Image.Resampling.BOX)
    file = BytesIO()
    picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return data_uri("image/jpeg", file.getvalue())


def data_uri(media_type: str, data: bytes) -> str:
    """Encode bytes as a data URI."""
    return f"data:{media_type};base64,{b64encode(data).decode()}"


def _content(facts: WorklistFacts, cases: Sequence[Case]) -> Mapping[str, Any]:
    """Collect what the script shows, in columns, which take half the space of records."""
    at = np.linspace(0, 1, min(len(facts.reference), _REFERENCE_SIZE))
    pictured = [case.pictures for case in cases if case.pictures is not None]
    # A typical image is similar to many cases, and is embedded once.
    typical = sorted({near for case in cases for near in case.nearest}, key=lambda it: it.image_id)
    place_of = {near: place for place, near in enumerate(typical)}
    return {
        "model_name": facts.model_name,
        "model_version": facts.model_version,
        "run_id": facts.run_id,
        "source": facts.source,
        "dataset_fingerprint": facts.dataset_fingerprint,
        "threshold": facts.threshold,
        "scored_count": facts.scored_count,
        "reference": [float(f"{value:.6g}") for value in np.quantile(facts.reference, at)],
        "image_id": [case.image_id for case in cases],
        "group_id": [case.group_id for case in cases],
        "anomaly_score": [float(f"{case.anomaly_score:.6g}") for case in cases],
        "percentile": [round(case.percentile, 2) for case in cases],
        "is_anomalous": [int(case.is_anomalous) for case in cases],
        "label": [_LABELS[case.label] for case in cases],
        "marks": [", ".join(case.marks) for case in cases],
        "thumbnail": [pictures.image for pictures in pictured],
        "heatmap": [pictures.heatmap for pictures in pictured],
        "reconstruction": [pictures.reconstruction for pictures in pictured],
        "nearest": [[place_of[near] for near in case.nearest] for case in cases if case.pictures],
        "typical_id": [near.image_id for near in typical],
        "typical_picture": [near.picture for near in typical],
    }


def _templates() -> Environment:
    return Environment(
        loader=FunctionLoader(_read_part),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read_part(name: str) -> str:
    return files("training.worklist").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
