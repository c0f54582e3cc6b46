"""Weights of the public code's networks (`ninatu/anomaly_detection`) -> ours.

The public code keeps one network per resolution and phase; ours holds all of them. A public
state of one resolution and phase therefore fills the parts that a call there uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.networks.autoencoder import Autoencoder

_PART = re.compile(r"(preprocess_|postprocess_|)res_(\d+)\.(.+)\.(weight|bias)$")


@torch.no_grad()
def load_published_weights(
    autoencoder: Autoencoder, *, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> None:
    """Copy public weights into the parts of their resolution and phase.

    Args:
        autoencoder: Network of the same form, latent and channels.
        encoder: State of a public encoder network, names beginning with `model.`.
        decoder: State of its decoder.

    Raises:
        ValueError: If a part is unknown here, or its tensors have other shapes.
    """
    ours, theirs = autoencoder.encoder, _by_part(encoder)
    _fill({"preprocess_": ours.from_image, "": ours.blocks}, theirs)
    mirrored, theirs = autoencoder.decoder, _by_part(decoder)
    _fill({"postprocess_": mirrored.to_image, "": mirrored.blocks}, theirs)


def _by_part(state: Mapping[str, Tensor]) -> dict[tuple[str, str], dict[str, Tensor]]:
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if found := _PART.search(name):
            kind, resolution, place, suffix = found.groups()
            parts.setdefault((kind, resolution), {})[f"{place}.{suffix}"] = tensor
    return parts


def _fill(
    ours: Mapping[str, nn.ModuleDict], theirs: Mapping[tuple[str, str], Mapping[str, Tensor]]
) -> None:
    for (kind, resolution), tensors in theirs.items():
        if kind not in ours or resolution not in ours[kind]:
            raise ValueError(f"no part {kind}res_{resolution} here: build the same resolutions")
        part = ours[kind][resolution]
        # A part's convolutions stand in one order in both, their own names apart.
        places = sorted({place.rpartition(".")[0] for place in tensors}, key=_order)
        convs = [module for module in part.modules() if isinstance(module, nn.Conv2d)]
        if len(places) != len(convs):
            raise ValueError(
                f"{kind}res_{resolution} has {len(places)} convolutions, {len(convs)} here: "
                "build the same form"
            )
        for place, conv in zip(places, convs, strict=True):
            for suffix, parameter in conv.named_parameters():
                tensor = tensors[f"{place}.{suffix}"]
                if tensor.shape != parameter.shape:
                    raise ValueError(
                        f"{kind}res_{resolution}.{place}.{suffix} is {tuple(tensor.shape)}, "
                        f"{tuple(parameter.shape)} here: build the same channels"
                    )
                parameter.copy_(tensor)


def _order(place: str) -> list[tuple[int, int, str]]:
    # By number where there is one, and a shortcut (`skipcon`) after the block's `model`.
    return [(0, int(step), "") if step.isdigit() else (1, 0, step) for step in place.split(".")]
