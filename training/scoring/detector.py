"""A trained network as that which scores images: bytes in, scores and heatmaps out.

Everything that it needs fits into three files, none of which is unpickled: `model.json` (settings
and image shape), `network.safetensors` and `features.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from training.data.augmentation import Views, centre_views, take_views
from training.data.batches import to_tensor
from training.learning.speed import set_tf32, settle_freed_memory
from training.learning.state import Recipe, build_autoencoder, growth_at
from training.networks.autoencoder import Autoencoder, mix_input
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
        autoencoder: Trained.
        recipe: The loss, on the autoencoder's device.
    """

    description: DetectorDescription
    autoencoder: Autoencoder
    recipe: Recipe

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
        settings = description.settings.model_copy(update={"precision": "fp32"})
        channels = description.image_shape[2]
        autoencoder = build_autoencoder(settings, image_channels=channels)
        autoencoder.load_state_dict(network)
        autoencoder.requires_grad_(False).eval().to(device)
        eyes = VggFeatures.from_state(features, layers=settings.loss.layer_names())
        eyes.to(device)
        for module in (autoencoder, eyes):
            convert_conv2d_weight_memory_format(module, torch.channels_last)
        recipe = Recipe(settings, eyes, image_channels=channels, device=device)
        return cls(description, autoencoder, recipe)

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
        for name, module in ((NETWORK, self.autoencoder), (FEATURES, self.recipe.features)):
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
        settle_freed_memory(self.recipe.settings.acceleration, self.recipe.device)
        set_tf32(is_allowed=self.recipe.settings.acceleration.allows_tf32)  # as in training
        views = centre_views(
            len(images), size_yx=shape[:2], settings=self.description.settings.images
        )
        found = [
            self._detect_batch(take_views(batch, _part(views, first)), heatmaps=heatmaps)
            for first in range(0, len(images), BATCH_IMAGES)
            for batch in [images[first : first + BATCH_IMAGES]]
        ]
        size = min(self.description.settings.network.latent_channels, _EMBEDDING_CHANNELS)
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

    def _detect_batch(
        self, crops: NDArray[np.uint8], *, heatmaps: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Scores (n,), embeddings (n, D), and heatmaps (n, side, side) or none (0,)."""
        growth = growth_at(self.recipe, self.recipe.total_steps)
        settings = self.recipe.settings.growth
        with torch.inference_mode():
            whole = to_tensor(
                crops, resolution=settings.final_resolution, device=self.recipe.device
            ).contiguous(memory_format=torch.channels_last)
            target = mix_input(whole, resolution=growth.resolution, alpha=growth.alpha)
            point: dict[str, Any] = {"resolution": growth.resolution, "alpha": growth.alpha}
            latents = self.autoencoder.encode(target, **point)
            made = self.autoencoder.decode(latents, **point)
            embedding = latents[:, :_EMBEDDING_CHANNELS].mean((2, 3)).cpu().numpy()
            scores = self.recipe.measure_loss(target, made, growth=growth, reduction="none")
            if not heatmaps:
                return scores.cpu().numpy(), embedding, np.empty(0, np.float32)
            maps = self.recipe.measure_loss(target, made, growth=growth, reduction="pixelwise")
            maps = F.interpolate(maps, size=crops.shape[1:3], mode="bilinear", align_corners=False)
            return scores.cpu().numpy(), embedding, maps[:, 0].cpu().numpy()


def _part(views: Views, first: int) -> Views:
    rows = slice(first, first + BATCH_IMAGES)
    return Views(views.origins_yx[rows], views.flips_yx[rows], views.side_px)
