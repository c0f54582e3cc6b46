"""VGG19's weight file where a cluster finds it."""

from __future__ import annotations

from pathlib import Path

from flows.shared.settings import Settings
from pipeline.errors import WeightsError
from pipeline.io import storage
from training.networks.vgg_weights import DOWNLOAD, RANDOM
from training.scoring.outputs import digest_file
from training.settings import TrainSettings


def share_weights(chosen: TrainSettings, settings: Settings) -> TrainSettings:
    """Copy a weight file of this machine into the state, where the cluster is elsewhere.

    Args:
        chosen: Settings of a training; only its `loss.vgg_weights` may change.
        settings: Settings that name the cluster and the state.

    Raises:
        WeightsError: There is no such file.
    """
    weights = chosen.loss.vgg_weights
    if weights in {RANDOM, DOWNLOAD} or "://" in weights or settings.remote_engine is None:
        return chosen
    path = Path(weights)
    try:
        name = f"{digest_file(path)[:16]}{path.suffix}"
    except OSError as error:
        raise WeightsError(
            weights, f"cannot be read ({error.strerror})", "Check the path"
        ) from error
    url = storage.join(settings.place("weights"), name)
    if not storage.exists(url):
        storage.write_bytes(url, path.read_bytes())
    loss = chosen.loss.model_copy(update={"vgg_weights": url})
    return chosen.model_copy(update={"loss": loss})
