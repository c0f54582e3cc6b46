"""A trained network as that which scores images: bytes in, scores and heatmaps out.

Everything that it needs fits into three files, none of which is unpickled: `model.json` (settings
and image shape), `network.safetensors` and `features.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from pipeline.runtime.malloc import set_freed_memory
from training.networks.autoencoder import Autoencoder
from training.networks.growth import GrowthState, last_state
from training.networks.inputs import Images, Views, centre_views, cut_views, to_tensor
from training.networks.losses import PerceptualLoss
from training.networks.precision import ReducedFeatures, set_tf32
from training.networks.reconstruction import Reconstruction, reconstruct
from training.networks.vgg import VggFeatures
from training.settings import TrainSettings

DESCRIPTION: Final = "model.json"
NETWORK: Final = "network.safetensors"
FEATURES: Final = "features.safetensors"
BATCH_IMAGES: Final = 64
# Channels of the latent have no order: the first ones tell as much as any others.
_EMBEDDING_CHANNELS: Final = 32


class DetectorDescription(BaseModel):
    """What a detector is, apart from its weights.

    Args:
        image_shape: (height, width, channels) of the images that it takes.
        settings: Of the training that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_shape: tuple[int, int, int]
    settings: TrainSettings


@dataclass(frozen=True)
class Detection:
    """What a detector finds in images.

    Args:
        anomaly_score: float32 (N,), higher = stranger.
        embedding: float32 (N, D), what the network makes of each image as a whole: the means over
            its latent's places of up to 32 channels.
        heatmap: float32 (N, H, W), which pixels are strange; NaN outside of the crop that the
            network looks at. None where it was not asked for.
    """

    anomaly_score: NDArray[np.float32]
    embedding: NDArray[np.float32]
    heatmap: NDArray[np.float32] | None


@dataclass(frozen=True)
class Detector:
    """Scores images by the last stage of a training, in single precision.

    Args:
        description: Settings and image shape.
        autoencoder: Trained network, on the device that scores.
        features: Feature extractor that images are compared by, on the same device.
    """

    description: DetectorDescription
    autoencoder: Autoencoder
    features: VggFeatures | ReducedFeatures

    @property
    def device(self) -> torch.device:
        """Where images are scored."""
        return next(self.autoencoder.parameters()).device

    @cached_property
    def growth(self) -> GrowthState:
        """The point of the growth at which images are scored: the end of the training."""
        return last_state(self.description.settings.growth.plan())

    @cached_property
    def loss(self) -> PerceptualLoss:
        """The training's loss, which is the anomaly score."""
        loss = self.description.settings.loss
        return PerceptualLoss(
            self.features,
            loss.weights_by_resolution(),
            norm=loss.norm,
            is_relative=loss.is_relative,
            is_blended=loss.blends_in_fade,
        )

    @classmethod
    def make(
        cls,
        description: DetectorDescription,
        *,
        network: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        device: torch.device | str | None = None,
    ) -> Self:
        """Build from weights.

        Args:
            description: Settings and image shape.
            network: State of the autoencoder.
            features: State of the `VggFeatures`.
            device: Where to score; a GPU if there is one, by default.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = description.settings
        with torch.device("meta"):  # draws no weights that are replaced at once
            autoencoder = Autoencoder(
                final_resolution=settings.growth.final_resolution,
                image_channels=description.image_shape[2],
                **settings.network.model_dump(),
            )
        autoencoder.load_state_dict(network, assign=True)
        autoencoder.requires_grad_(False).eval().to(device)
        extractor = VggFeatures.from_state(features, layers=settings.loss.layer_names()).to(device)
        for module in (autoencoder, extractor):
            convert_conv2d_weight_memory_format(module, torch.channels_last)
        return cls(description, autoencoder, extractor)

    @classmethod
    def load(cls, folder: Path, *, device: torch.device | str | None = None) -> Self:
        """Read what `save` wrote."""
        return cls.make(
            DetectorDescription.model_validate_json((folder / DESCRIPTION).read_text()),
            network=safetensors.torch.load_file(folder / NETWORK),
            features=safetensors.torch.load_file(folder / FEATURES),
            device=device,
        )

    def save(self, folder: Path) -> None:
        """Write the three files into a folder, which must be there."""
        (folder / DESCRIPTION).write_text(self.description.model_dump_json(indent=1) + "\n")
        for name, module in ((NETWORK, self.autoencoder), (FEATURES, self.features)):
            state = {key: value.cpu().contiguous() for key, value in module.state_dict().items()}
            safetensors.torch.save_file(state, folder / name)

    def detect(self, images: NDArray[np.uint8], *, heatmaps: bool = False) -> Detection:
        """Score images, a batch at a time.

        Args:
            images: uint8 (N, H, W, C).
            heatmaps: Whether to make them, which takes twice as long.

        Raises:
            ValueError: The images have another shape than the network was trained on.
        """
        shape = self.description.image_shape
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape[1:]}, this model takes uint8 {shape}: "
                "ingest them with the model's parameters"
            )
        settings = self.description.settings
        if self.device.type == "cpu":
            set_freed_memory(is_kept=settings.acceleration.keeps_freed_memory)
        set_tf32(is_allowed=settings.acceleration.allows_tf32)  # as in training
        views = centre_views(len(images), size_yx=shape[:2], crop_px=settings.images.crop_px)
        found = [
            self._detect_batch(cut_views(batch, _part(views, first)), heatmaps=heatmaps)
            for first in range(0, len(images), BATCH_IMAGES)
            for batch in [images[first : first + BATCH_IMAGES]]
        ]
        size = min(settings.network.latent_channels, _EMBEDDING_CHANNELS)
        scores = np.concatenate([np.empty(0, np.float32), *(part[0] for part in found)])
        embedding = np.concatenate([np.empty((0, size), np.float32), *(part[1] for part in found)])
        if not heatmaps:
            return Detection(scores, embedding, None)
        maps = np.full((len(images), *shape[:2]), np.nan, np.float32)
        if found:
            y, x = views.origins_yx[0]
            side = views.side_px
            maps[:, y : y + side, x : x + side] = np.concatenate([part[2] for part in found])
        return Detection(scores, embedding, maps)

    def reconstruct(self, crops: Images) -> Reconstruction:
        """Pass uint8 (n, side, side, C) crops through the network."""
        final = self.description.settings.growth.final_resolution
        whole = to_tensor(crops, resolution=final, device=self.device)
        whole = whole.contiguous(memory_format=torch.channels_last)
        return reconstruct(self.autoencoder, whole, self.growth)

    def _detect_batch(
        self, crops: NDArray[np.uint8], *, heatmaps: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Scores (n,), embeddings (n, D), and heatmaps (n, side, side) or none (0,)."""
        with torch.inference_mode():
            made = self.reconstruct(crops)
            embedding = made.latents[:, :_EMBEDDING_CHANNELS].mean((2, 3)).cpu().numpy()
            compared = made.compare(self.loss)
            scores = compared.reduce("none").cpu().numpy()
            if not heatmaps:
                return scores, embedding, np.empty(0, np.float32)
            maps = compared.reduce("pixelwise")
            maps = F.interpolate(maps, size=crops.shape[1:3], mode="bilinear", align_corners=False)
            return scores, embedding, maps[:, 0].cpu().numpy()


def _part(views: Views, first: int) -> Views:
    rows = slice(first, first + BATCH_IMAGES)
    return Views(views.origins_yx[rows], views.flips_yx[rows], views.side_px)
