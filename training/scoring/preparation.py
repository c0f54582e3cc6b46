"""How the images were prepared that a model was trained on, so that others are prepared alike."""

from __future__ import annotations

from math import isclose
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from pipeline.errors import SchemaError
from pipeline.store.dataset import Dataset

# Parameters that choose, divide or lay out images, but do not change what one looks like.
_NOT_OF_IMAGES: Final = frozenset(
    {
        "stride_px",
        "max_tiles_per_slide",
        "lesion_threshold",
        "lesion_groups",
        "excluded_groups",
        "mpp_override_um",
        "mpp_fallback_um",
        "validation_fraction",
        "test_fraction",
        "seed",
        "shard_images",
        "chunk_images",
    }
)


class IngestRecord(BaseModel):
    """How the images were prepared that a model was trained on; scoring prepares alike.

    Args:
        modality: Of the dataset.
        source: Of the dataset.
        mpp_um: Micrometres a pixel, or None.
        parameters: Of the dataset's ingest.
        fingerprint: Of the dataset.
        code_version: Of the code that ingested it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: str
    source: str
    mpp_um: float | None
    parameters: dict[str, Any]
    fingerprint: str
    code_version: str

    @classmethod
    def of(cls, dataset: Dataset) -> IngestRecord:
        """Take it from a sealed dataset."""
        known = {name: dataset.attributes[name] for name in cls.model_fields}
        return cls.model_validate(known)

    def require_alike(self, dataset: Dataset, *, image_shape: tuple[int, int, int]) -> None:
        """Refuse a dataset whose images were prepared otherwise.

        Args:
            dataset: To be scored.
            image_shape: (height, width, channels) that the model takes.

        Raises:
            SchemaError: States what differs, with both values.
        """
        other = IngestRecord.of(dataset)
        differing: dict[str, tuple[object, object]] = {
            "image shape": (image_shape, dataset.image_shape),
            "modality": (self.modality, other.modality),
        }
        if not _is_same_mpp(self.mpp_um, other.mpp_um):
            differing["mpp_um"] = (self.mpp_um, other.mpp_um)
        for name in sorted(self.parameters.keys() & other.parameters.keys()):
            if name not in _NOT_OF_IMAGES:
                differing[f"parameter {name}"] = (self.parameters[name], other.parameters[name])
        problems = [
            f"{name} is {theirs}, the model has {ours}"
            for name, (ours, theirs) in differing.items()
            if ours != theirs
        ]
        if problems:
            raise SchemaError(
                dataset.url, "; ".join(problems), "Ingest the images with the model's parameters"
            )


def _is_same_mpp(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours == theirs
    return isclose(ours, theirs, rel_tol=1e-6)
