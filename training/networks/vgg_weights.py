"""VGG19 weights from files in every published form, and the statistics of their features."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import AbsentError, WeightsError
from pipeline.io.storage import describe
from training.networks.vgg import (
    CONVOLUTIONS,
    IMAGE_MEAN,
    IMAGE_STD,
    LAYERS,
    Padding,
    VggFeatures,
    convolutions_needed,
    random_vgg_weights,
)

RANDOM = "random"
DOWNLOAD = "download"
TORCHVISION_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
TORCHVISION_SHA256_PREFIX = "dcbb9e9d"

State: TypeAlias = Mapping[str, Tensor]

# Where torchvision's `features` holds its convolutions, in the order of CONVOLUTIONS.
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
_REMEDY = "Give torchvision's vgg19 file, one of its normalised forms, 'download' or 'random'"


def load_vgg(
    weights: str,
    *,
    layers: Sequence[str],
    statistics: str | None = None,
    cache_folder: str | None = None,
    seed: int = 0,
    width: int = 64,
) -> VggFeatures:
    """Make a feature extractor from a file, a download or a seed.

    Args:
        weights: Path or URL of torchvision's own VGG19 file, of the normalised form (a leading
            1 x 1 convolution, reflect padding), of the distilled form, or of a `.safetensors`
            file with the state of a `VggFeatures`; or `download` for torchvision's file, fetched
            once; or `random` for seeded weights without meaning.
        layers: Layers to reach, such as `relu4_2`.
        statistics: Path or URL of the mean and scale of each layer's channels, keyed `r42` and so
            on. Without it features stay as the file has them: unnormalised, or by the statistics
            in a `VggFeatures` state. `training.networks.vgg.measure_statistics` measures others.
        cache_folder: Folder that keeps the downloaded file; torch's own cache if None.
        seed: Seed of the weights that `random` draws.
        width: Channels of the first block of `random`; 64 is VGG19's own.

    Raises:
        WeightsError: If a file cannot be had or read, or lacks what the layers need.
        ValueError: If VGG19 has no such layer.
    """
    if weights == RANDOM:
        drawn = random_vgg_weights(seed=seed, layers=layers, width=width)
        features = VggFeatures(drawn, layers=layers)
    else:
        with _local_file(
            str(download_vgg(cache_folder)) if weights == DOWNLOAD else weights
        ) as path:
            features = _features_from(path, layers)
    if statistics is not None:
        try:
            with _local_file(statistics) as path:
                features.normalize_by(read_statistics(path))
        except ValueError as error:
            remedy = "Give the statistics of these weights, or none and measure them"
            raise WeightsError(statistics, str(error), remedy) from error
    return features


def download_vgg(cache_folder: str | None = None) -> Path:
    """Fetch torchvision's VGG19 file (548 MB) unless it is there, and check its SHA-256.

    Raises:
        WeightsError: If it cannot be fetched, or is not what was published.
    """
    folder = Path(cache_folder) if cache_folder else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / TORCHVISION_URL.rpartition("/")[2]
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Writes beside the path and moves; a wrong hash raises RuntimeError.
            torch.hub.download_url_to_file(
                TORCHVISION_URL, str(path), hash_prefix=TORCHVISION_SHA256_PREFIX
            )
        except (URLError, OSError, RuntimeError) as error:
            remedy = f"Fetch it by hand to {path}, or give a weight file by its path"
            raise WeightsError(
                TORCHVISION_URL, f"could not be fetched ({error})", remedy
            ) from error
    return path


def read_statistics(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the mean and scale of each layer's channels.

    Args:
        path: A torch file of pairs of (1, C, 1, 1) tensors keyed `r12` for relu1_2 and so on,
            as the published code has for torchvision's weights.

    Raises:
        WeightsError: If the file is missing or holds no such pairs.
    """
    pairs = _read(path)
    found = {
        layer: (torch.as_tensor(pair[0]), torch.as_tensor(pair[1]))
        for layer in LAYERS
        if isinstance(pair := pairs.get(f"r{layer[4]}{layer[6]}"), tuple | list) and len(pair) == 2
    }
    if not found:
        remedy = "Give a file of (mean, scale) pairs keyed r12, r21, ..., or none"
        raise WeightsError(str(path), "holds no statistics of VGG19's layers", remedy)
    return found


def convert_weights(state: State) -> tuple[dict[str, Tensor], Padding] | None:
    """Bring weights of any known form into one.

    Returns:
        `conv1_1.weight`, `conv1_1.bias`, ... for colours in ImageNet's normalisation, and how
        the convolutions pad; None if the form is not known.
    """
    if "features.0.weight" in state:
        return _renamed(state, [f"features.{index}" for index in _TORCHVISION]), "zeros"
    if "conv0.weight" in state and "conv11.weight" in state:
        names = [f"conv{name.replace('_', '')}" for name in CONVOLUTIONS]
        return _with_input_folded(_renamed(state, names), state, "conv0"), "reflect"
    numbers = sorted(int(key.split(".")[0]) for key in state if re.fullmatch(r"\d+\.weight", key))
    if len(numbers) > 1 and state[f"{numbers[0]}.weight"].shape == (3, 3, 1, 1):
        first, *rest = (str(number) for number in numbers)
        return _with_input_folded(_renamed(state, rest), state, first), "reflect"
    return None


@contextmanager
def _local_file(url: str) -> Iterator[Path]:
    """A weight file on this machine's disk, fetched for the block where it lies on S3.

    Raises:
        WeightsError: It is not there.
    """
    if "://" not in url:
        yield Path(url)
        return
    from pipeline.io.staging import stage  # noqa: PLC0415 -- brings boto3, which few need

    try:
        version = describe(url).version
    except AbsentError as error:
        raise WeightsError(url, "does not exist", _REMEDY) from error
    with stage(url, version) as path:
        yield path


def _features_from(path: Path, layers: Sequence[str]) -> VggFeatures:
    content = _read(path)
    content = content.get("model", content)  # the distilled form lies one level down
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    is_own = "reflects" in state
    converted = (state, None) if is_own else convert_weights(state)
    if converted is None:
        keys = ", ".join(list(state)[:3]) or "none"
        raise WeightsError(str(path), f"holds no VGG19 of a known form (tensors: {keys})", _REMEDY)
    weights, padding = converted
    for name in convolutions_needed(layers):
        if f"conv{name}.weight" not in weights:
            reached = [layer for layer in LAYERS if f"conv{layer[4:]}.weight" in weights]
            problem = f"lacks conv{name}, which {', '.join(layers)} cannot do without"
            remedy = f"Choose layers down to {reached[-1]} at most, or a fuller weight file"
            raise WeightsError(str(path), problem, remedy)
    if padding is None:
        return VggFeatures.from_state(state, layers=layers)
    return VggFeatures(weights, layers=layers, padding=padding)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(str(path), "does not exist", _REMEDY) from error
    except (OSError, UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        # torch's own text advises to unpickle what is not trusted; ours must not.
        raise WeightsError(str(path), "is no readable file of tensors", _REMEDY) from error
    if not isinstance(content, Mapping):
        problem = f"holds a {type(content).__name__}, not tensors by name"
        raise WeightsError(str(path), problem, _REMEDY)
    return content


def _renamed(state: State, names: Sequence[str]) -> dict[str, Tensor]:
    return {
        f"conv{ours}.{kind}": state[f"{theirs}.{kind}"]
        for ours, theirs in zip(CONVOLUTIONS, names, strict=False)
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state
    }


def _with_input_folded(weights: dict[str, Tensor], state: State, first: str) -> dict[str, Tensor]:
    # The leading 1 x 1 convolution takes colours in [0, 1]. It and the way there from ImageNet's
    # normalisation are linear, so the first 3 x 3 convolution can hold both; reflect padding
    # repeats pixels and so does not care which side of them it stands on.
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    mixing = state[f"{first}.weight"][:, :, 0, 0].double()
    offset = mixing @ mean.double() + state[f"{first}.bias"].double()
    weight = weights["conv1_1.weight"].double()
    folded = torch.einsum("omyx,mi->oiyx", weight, mixing * std.double())
    bias = weights["conv1_1.bias"].double() + torch.einsum("omyx,m->o", weight, offset)
    return weights | {"conv1_1.weight": folded.float(), "conv1_1.bias": bias.float()}
