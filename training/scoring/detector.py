"""A trained network that scores images: bytes in, scores, heatmaps and reconstructions out.

A detector is stored as three files, none of which is unpickled: `model.json` (settings and image
shape), `network.safetensors` and `features.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
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

from pipeline.runtime.malloc import set_freed_memory
from training.networks.autoencoder import Autoencoder
from training.networks.growth import GrowthState, last_state
from training.networks.inputs import centre_views, to_pixels, to_tensor
from training.networks.losses import PerceptualLoss
from training.networks.precision import ReducedFeatures, set_tf32
from training.networks.reconstruction import Reconstruction, reconstruct
from training.networks.vgg import VggFeatures
from training.settings import TrainSettings

DESCRIPTION: Final = "model.json"
NETWORK: Final = "network.safetensors"
FEATURES: Final = "features.safetensors"
_BATCH_IMAGES: Final = 64
# The latent's channels have no order: the first ones say as much as any others.
_EMBEDDING_CHANNELS: Final = 32


class DetectorDescription(BaseModel):
    """A detector without its weights.

    Args:
        image_shape: Height, width and channels of the images that the detector takes.
        settings: Settings of the training that made the network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_shape: tuple[int, int, int]
    settings: TrainSettings


@dataclass(frozen=True)
class Detection:
    """What a detector finds in images.

    Args:
        anomaly_score: float32 (N,), higher is more anomalous.
        embedding: float32 (N, D), the latent's mean over its positions, at most 32 channels.
        heatmap: float32 (N, H, W), anomaly of each pixel, NaN outside the crop that the network
            sees; None unless asked for.
    """

    anomaly_score: NDArray[np.float32]
    embedding: NDArray[np.float32]
    heatmap: NDArray[np.float32] | None


@dataclass(frozen=True)
class Reconstructions:
    """Images as the network reconstructs them.

    Args:
        pictures: uint8 (N, resolution, resolution, C), reconstruction of the centre crop.
        latents: float32 (N, D), latents scaled to unit length.
    """

    pictures: NDArray[np.uint8]
    latents: NDArray[np.float32]


@dataclass(frozen=True)
class Detector:
    """Scores images by the last stage of a training, in single precision.

    A pickled detector holds its weights in CPU memory; unpickled, it uses a GPU if there is one.

    Args:
        description: Settings of the training and shape of the images.
        autoencoder: Trained network, on the device that scores.
        features: Feature extractor that images are compared by, on the same device.
    """

    description: DetectorDescription
    autoencoder: Autoencoder
    features: VggFeatures | ReducedFeatures

    @property
    def device(self) -> torch.device:
        """Device that scores."""
        return next(self.autoencoder.parameters()).device

    @property
    def is_reduced(self) -> bool:
        """Whether features are computed in bfloat16."""
        return isinstance(self.features, ReducedFeatures)

    @cached_property
    def growth(self) -> GrowthState:
        """Point of the network's growth at which images are scored: the end of the training."""
        return last_state(self.description.settings.growth.plan())

    @cached_property
    def loss(self) -> PerceptualLoss:
        """Loss of the training, which is the anomaly score."""
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
        """Build a detector from weights.

        Args:
            description: Settings of the training and shape of the images.
            network: State of the autoencoder, parameter name to tensor.
            features: State of the `VggFeatures`, parameter name to tensor.
            device: Device that scores; by default a GPU if there is one.
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
        """Write the three files into an existing folder."""
        (folder / DESCRIPTION).write_text(self.description.model_dump_json(indent=1) + "\n")
        for name, state in zip((NETWORK, FEATURES), self.copy_weights(), strict=True):
            safetensors.torch.save_file(state, folder / name)

    def copy_weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States of the autoencoder and of the feature extractor, in CPU memory."""
        extractor = self.features
        whole = extractor.features if isinstance(extractor, ReducedFeatures) else extractor
        network, features = (
            {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
            for module in (self.autoencoder, whole)
        )
        return network, features

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.description, *self.copy_weights(), self.is_reduced)

    def reduce_precision(self) -> Self:
        """Compute features, which take most of the time, in bfloat16; the rest in float32."""
        if isinstance(self.features, ReducedFeatures):
            return self
        return replace(self, features=ReducedFeatures(self.features))

    @torch.inference_mode()
    def detect(self, images: NDArray[np.uint8], *, heatmaps: bool = False) -> Detection:
        """Score images, a batch at a time.

        Args:
            images: uint8 (N, H, W, C).
            heatmaps: Whether to make a heatmap of each image too.

        Raises:
            ValueError: The images have another shape or dtype than the network was trained on.
        """
        size = min(self.description.settings.network.latent_channels, _EMBEDDING_CHANNELS)
        scores = np.empty(len(images), np.float32)
        embeddings = np.empty((len(images), size), np.float32)
        maps = np.full(images.shape[:3], np.nan, np.float32) if heatmaps else None
        for rows, made in self._pass(images):
            compared = made.compare(self.loss)
            scores[rows] = compared.reduce("none").cpu().numpy()
            embeddings[rows] = made.latents[:, :size].mean((2, 3)).cpu().numpy()
            if maps is not None:
                part = maps[rows, *self._crop]
                drawn = F.interpolate(compared.reduce("pixelwise"), part.shape[1:], mode="bilinear")
                part[:] = drawn[:, 0].cpu().numpy()
        return Detection(scores, embeddings, maps)

    @torch.inference_mode()
    def reconstruct(self, images: NDArray[np.uint8]) -> Reconstructions:
        """Pass images through the network without comparing them.

        Args:
            images: uint8 (N, H, W, C), at least one.

        Raises:
            ValueError: The images have another shape or dtype than the network was trained on.
        """
        pictures, vectors = [], []
        for _, made in self._pass(images):
            pictures.append(to_pixels(made.images))
            vectors.append(F.normalize(made.latents.flatten(1), dim=1).cpu().numpy())
        return Reconstructions(np.concatenate(pictures), np.concatenate(vectors))

    @property
    def _crop(self) -> tuple[slice, slice]:
        """Centre crop that the network sees, along y and x."""
        crop_px = self.description.settings.images.crop_px
        view = centre_views(1, size_yx=self.description.image_shape[:2], crop_px=crop_px)
        y, x = view.origins_yx[0].tolist()
        return slice(y, y + view.side_px), slice(x, x + view.side_px)

    def _pass(self, images: NDArray[np.uint8]) -> Iterator[tuple[slice, Reconstruction]]:
        """Rows of each batch, and what the network makes of them."""
        shape, settings = self.description.image_shape, self.description.settings
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape[1:]}, this model takes uint8 {shape}: "
                "ingest them with the model's parameters"
            )
        if self.device.type == "cpu":
            set_freed_memory(is_kept=settings.acceleration.keeps_freed_memory)
        set_tf32(is_allowed=settings.acceleration.allows_tf32)  # as in training
        final = settings.growth.final_resolution
        for first in range(0, len(images), _BATCH_IMAGES):
            rows = slice(first, first + _BATCH_IMAGES)
            crops = to_tensor(images[rows, *self._crop], resolution=final, device=self.device)
            crops = crops.contiguous(memory_format=torch.channels_last)
            yield rows, reconstruct(self.autoencoder, crops, self.growth)


def _unpickle(
    description: DetectorDescription,
    network: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    is_reduced: bool,
) -> Detector:
    detector = Detector.make(description, network=network, features=features)
    return detector.reduce_precision() if is_reduced else detector
