"""What a training does, in full: frozen settings; `training.presets` names some."""

from __future__ import annotations

import math
import re
from typing import Final, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.errors import SettingsError
from training.networks.autoencoder import Form, channels_by_resolution
from training.networks.growth import Stage, plan_stages, resolutions_between
from training.networks.vgg import IMAGE, convolutions_needed

MEASURE: Final = "measure"
PerResolution: TypeAlias = int | dict[int, int]
WhereHeld: TypeAlias = Literal["auto", "always", "never"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSettings(_Frozen):
    """The autoencoder; see `training.networks.autoencoder.Autoencoder`."""

    form: Form = "residual18"
    latent_resolution: PositiveInt = 8
    latent_channels: PositiveInt = 4
    channels: PositiveInt | tuple[PositiveInt, ...] = 4


class GrowthSettings(_Frozen):
    """When it grows; see `training.networks.growth.plan_stages`."""

    initial_resolution: PositiveInt = 16
    final_resolution: PositiveInt = 64
    fade_in_iterations: PerResolution = 20_000
    stabilize_iterations: PerResolution = 20_000
    batch_sizes: PerResolution = 128

    def plan(self) -> tuple[Stage, ...]:
        """The stages of the run."""
        return plan_stages(**self.model_dump())

    def resolutions(self) -> tuple[int, ...]:
        """Every resolution trained, ascending, in px."""
        return resolutions_between(self.initial_resolution, self.final_resolution)


class LossSettings(_Frozen):
    """The reconstruction loss, which is also the anomaly score.

    Attributes:
        layers: For each resolution in px the layers compared, and their weights.
        pixel_weight: Weight of the pixels beside the layers, compared as features are: the public
            code's `img_weight`.
        norm: `l1` or `l2` (squared).
        is_relative: Whether errors are relative to the image's own features.
        blends_in_fade: Whether a fade blends the losses of both resolutions.
        vgg_weights: Path of a VGG19 file, `download` or `random` (seeded, without meaning).
        vgg_seed: Of `random`.
        vgg_width: Channels of the first block of `random`; VGG19's own is 64.
        feature_statistics: Path of the features' mean and scale, `measure` to measure them on
            training images, or None to leave features as the weights give them.
        statistics_images: How many images to measure them on.
    """

    layers: dict[int, dict[str, PositiveFloat]]
    pixel_weight: NonNegativeFloat = 0.0
    norm: Literal["l1", "l2"] = "l1"
    is_relative: bool = True
    blends_in_fade: bool = True
    vgg_weights: str = "download"
    vgg_seed: NonNegativeInt = 0
    vgg_width: PositiveInt = 64
    feature_statistics: str | None = MEASURE
    statistics_images: PositiveInt = 512

    def weights_by_resolution(self) -> dict[int, dict[str, float]]:
        """Weights of the layers, the pixels among them where they count."""
        pixels = {IMAGE: self.pixel_weight} if self.pixel_weight else {}
        return {resolution: {**pixels, **layers} for resolution, layers in self.layers.items()}

    def layer_names(self) -> tuple[str, ...]:
        """Every layer of VGG19 that is compared somewhere, shallowest first."""
        names = {name for layers in self.layers.values() for name in layers} - {IMAGE}
        return tuple(sorted(names, key=lambda name: len(convolutions_needed([name]))))


class AdversarialSettings(_Frozen):
    """A discriminator beside the reconstruction loss, as in the paper's ablation.

    It learns with the optimiser's settings, as long as the training lasts; the anomaly score does
    not know it. The defaults are those of the public code, whose ablation has weights of 0.1 and 1
    at a learning rate of 2e-4.

    Attributes:
        weight: Of the adversarial term; 0 for no discriminator.
        critic_steps: Steps of the discriminator before each of the autoencoder, each with a batch
            of its own.
        gradient_weight: Of the penalty on gradients of other length than 1.
        drift_weight: Of the squared judgements.
    """

    weight: NonNegativeFloat = 0.0
    critic_steps: PositiveInt = 2
    gradient_weight: NonNegativeFloat = 10.0
    drift_weight: NonNegativeFloat = 1e-3

    @property
    def steps_before_each(self) -> int:
        """Steps of the discriminator before each of the autoencoder; 0 without one."""
        return self.critic_steps if self.weight else 0


class OptimiserSettings(_Frozen):
    """Adam's."""

    learning_rate: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0


class AccelerationSettings(_Frozen):
    """What makes steps faster; see `training.learning.speed`. By default the loss stays as it is.

    Attributes:
        uses_channels_last: Whether the channels of a pixel lie side by side in memory, as
            convolutions read them fastest; only the order of sums differs.
        target_cache_bytes: The features of the training images are computed once a stage if
            they need no more than this on the device, and nothing augments the images; 0 for
            never. Same bits, more memory.
        images_on_device: Whether the training images are held in the device's own memory, and
            augmented there; `auto` on GPUs where they need no more than half of what is free.
            Same bits.
        keeps_freed_memory: Whether, on cores, the memory of a step is kept for the next one and
            not given back to the system in between. Same bits; glibc alone heeds it.
        compiles_steps: Whether forward and backward pass are compiled, for each stage anew, on
            GPUs into CUDA graphs. Needs a C++ compiler; results differ in their last digits.
        allows_tf32: Whether GPUs may round factors in single precision to TF32. If not, not even
            in convolutions, where PyTorch by itself would.
        fuses_optimiser: Whether Adam is one kernel on GPUs.
    """

    uses_channels_last: bool = True
    target_cache_bytes: int = Field(default=2 * 2**30, ge=0)
    images_on_device: WhereHeld = "auto"
    keeps_freed_memory: bool = True
    compiles_steps: bool = False
    allows_tf32: bool = False
    fuses_optimiser: bool = True


class ImageSettings(_Frozen):
    """What of a dataset's image is looked at.

    Attributes:
        crop_px: Side of a square crop; None takes the largest square. A crop larger than the
            final resolution is averaged down to it.
        crops_at_random: Whether training crops anywhere; validation and scoring crop the centre.
        flips_at_random: Whether training mirrors images, each axis every other time.
    """

    crop_px: PositiveInt | None = None
    crops_at_random: bool = False
    flips_at_random: bool = False


class QualitySettings(_Frozen):
    """Which tiles are learnt from, by a dataset's quality columns; without a limit, all.

    What is left out stays in the dataset, is validated on and scored.

    Attributes:
        min_laplacian_variance: Blurred tiles have less.
        max_saturation: Tiles of one strong colour have more, 0 to 1.
        max_blank_fraction: Of bare glass, 0 to 1.
        max_pen_fraction: Of ink, 0 to 1.
    """

    min_laplacian_variance: NonNegativeFloat | None = None
    max_saturation: NonNegativeFloat | None = None
    max_blank_fraction: NonNegativeFloat | None = None
    max_pen_fraction: NonNegativeFloat | None = None

    def ranges(self) -> dict[str, tuple[float, float]]:
        """For each column that has a limit, the least and the greatest value."""
        given = self.model_dump(exclude_none=True)
        return {
            name[4:]: (limit, math.inf) if name.startswith("min_") else (-math.inf, limit)
            for name, limit in given.items()
        }


class TrainSettings(_Frozen):
    """A whole training.

    Attributes:
        l1_weight: Of the plain L1 distance of pixels, added to the loss in training alone, as in
            the paper's ablation (0.1 or 1); the anomaly score does not know it.
        seed: Of weights, order and augmentation.
        precision: `fp32`; `bf16_features` for VGG19 in bfloat16, which does nearly all the work;
            `bf16` for the autoencoder too. Losses are summed in single precision always.
        acceleration: What makes steps faster at the same precision.
        log_every: Steps between readings of the loss.
        validate_every: Steps between validations; the end of a stage validates too.
        checkpoint_every: Steps between checkpoints; the end of a stage is one too.
        checkpoints_kept: How many of the latest are kept.
        validation_images: At most so many normals, and anomalies, in each validation.
        cpu_threads: Threads of each worker that computes on cores; None shares the machine's
            cores among its workers. Tiny networks do best with 1.
        cache_bytes: The training images are held in memory if they need no more than this, and
            are read chunk by chunk otherwise.
    """

    network: NetworkSettings = NetworkSettings()
    growth: GrowthSettings = GrowthSettings()
    loss: LossSettings
    l1_weight: NonNegativeFloat = 0.0
    adversarial: AdversarialSettings = AdversarialSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    images: ImageSettings = ImageSettings()
    quality: QualitySettings = QualitySettings()
    seed: NonNegativeInt = 0
    precision: Literal["fp32", "bf16_features", "bf16"] = "fp32"
    acceleration: AccelerationSettings = AccelerationSettings()
    log_every: PositiveInt = 50
    validate_every: PositiveInt = 2_000
    checkpoint_every: PositiveInt = 1_000
    checkpoints_kept: PositiveInt = 2
    validation_images: PositiveInt = 2_000
    cpu_threads: PositiveInt | None = None
    cache_bytes: int = Field(default=4 * 2**30, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.growth.plan()
        channels_by_resolution(
            self.growth.final_resolution, self.network.latent_resolution, self.network.channels
        )
        smallest = max(self.network.latent_resolution, 4)
        if self.growth.initial_resolution < smallest:
            raise ValueError(
                f"growth.initial_resolution is {self.growth.initial_resolution} px, but the "
                f"network begins at {smallest} px: begin there or above"
            )
        for resolution in self.growth.resolutions():
            if not self.loss.layers.get(resolution):
                raise ValueError(f"loss.layers says nothing of {resolution} px: add an entry")
        if self.loss.vgg_weights == "random" and self.loss.vgg_width % 8:
            raise ValueError(f"loss.vgg_width is {self.loss.vgg_width}: give a multiple of 8")
        self.loss.layer_names()  # refuses layers that VGG19 has not
        crop = self.images.crop_px
        if crop is not None and crop < self.growth.final_resolution:
            raise ValueError(
                f"images.crop_px is {crop} px, less than growth.final_resolution "
                f"{self.growth.final_resolution} px: crop more or grow less"
            )
        return self


def check_run_name(name: str) -> None:
    """Refuse a name that cannot be a folder's and a key's everywhere.

    Raises:
        SettingsError: Other characters than letters, digits, `.`, `_` and `-`, or none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SettingsError(
            "run name", f"{name!r} cannot name a folder", "Use letters, digits, `.`, `_` and `-`"
        )


def flatten(settings: BaseModel) -> dict[str, str]:
    """Settings as flat text, such as `growth.final_resolution`: `64`, for a run's parameters."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = str(value)

    walk("", settings.model_dump())
    return flat
