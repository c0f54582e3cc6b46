"""Numeric precision of the networks: TF32 on GPUs, bfloat16 in the feature extractor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.networks.vgg import VggFeatures


def set_tf32(*, is_allowed: bool) -> None:
    """Choose whether GPUs may round the factors of float32 products to TF32 (10 bits).

    The choice holds for the whole process, for convolutions and for matrix products alike. Left
    to itself PyTorch rounds in convolutions and not in matrix products.
    """
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    torch.backends.cudnn.allow_tf32 = is_allowed


class ReducedFeatures(nn.Module):
    """Features computed in bfloat16 and returned in float32.

    Comparing them and summing the errors stays in float32.

    Args:
        features: Extractor whose convolutions run in bfloat16.
    """

    def __init__(self, features: VggFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Compute features as `VggFeatures.forward` does."""
        with torch.autocast(images.device.type, torch.bfloat16):
            found: dict[str, Tensor] = self.features(images, layers)
        return {name: values.float() for name, values in found.items()}
