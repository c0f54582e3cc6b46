"""Everything that a training can be told; `training.presets` names some useful sets of settings.

The text under each field is its documentation everywhere: in Prefect's form, in `--help` and in
the reference pages.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, Self, TypeAlias

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

from training.networks.autoencoder import Form, channels_by_resolution
from training.networks.growth import Stage, plan_stages, resolutions_between
from training.networks.vgg import IMAGE, convolutions_needed

MEASURE: Final = "measure"
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
PerResolution: TypeAlias = NonNegativeInt | dict[int, NonNegativeInt]
WhereHeld: TypeAlias = Literal["auto", "always", "never"]


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class NetworkSettings(_Frozen):
    """Shape of the autoencoder."""

    form: Form = "residual18"
    """Blocks of the network: `residual18`, as in the paper; `residual9`, with one residual block
    less at each resolution; or `regular`, with plain convolutions."""
    latent_resolution: PositiveInt = 8
    """Height and width of the latent in px: 1, 4, 8, 16, ... A latent of 1 px forgets where
    things are, which radiographs need; larger ones suit tiles of tissue."""
    latent_channels: PositiveInt = 4
    """Channels of the latent. More of them reconstruct better, anomalies too."""
    channels: PositiveInt | tuple[PositiveInt, ...] = 4
    """Feature channels: one number for all resolutions, or one for each from the finest down to
    the latent's (to 4 px for a latent of 1 px)."""


class GrowthSettings(_Frozen):
    """Progressive growing: the resolution doubles, each time with a fade-in."""

    initial_resolution: PositiveInt = 16
    """First resolution trained, in px; at least 4 px and the latent's."""
    final_resolution: PositiveInt = 64
    """Last resolution trained, in px: the first one times a power of two. Images are scored at
    this resolution."""
    fade_in_iterations: PerResolution = 20_000
    """Optimiser steps of each fade-in: one number for all, or one for each resolution after the
    first, ascending."""
    stabilize_iterations: PerResolution = 20_000
    """Optimiser steps at each resolution after its fade-in: one number for all, or one for each
    resolution, ascending."""
    batch_sizes: PerResolution = 128
    """Images per step over all workers: one number for all, or one for each resolution,
    ascending. Smaller batches need less memory."""

    def plan(self) -> tuple[Stage, ...]:
        """The stages of the run."""
        return plan_stages(**self.model_dump())

    def resolutions(self) -> tuple[int, ...]:
        """Every resolution trained, ascending, in px."""
        return resolutions_between(self.initial_resolution, self.final_resolution)


class LossSettings(_Frozen):
    """The perceptual reconstruction loss, which is also the anomaly score."""

    layers: dict[int, dict[str, PositiveFloat]]
    """Layers of VGG19 that are compared, for each resolution ascending, or one entry for all. An
    entry is a layer, `relu1_1` to `relu5_4`, or a weighted sum such as `relu1_2+0.5*relu2_1`."""
    pixel_weight: NonNegativeFloat = 0.0
    """Weight of the pixels among the compared layers; 0 leaves them out. Unlike `l1_weight` it
    counts in the anomaly score too."""
    norm: Literal["l1", "l2"] = "l1"
    """Distance between features: `l1` (absolute, as in the paper) or `l2` (squared)."""
    is_relative: bool = True
    """Divide the distance by the size of the image's own features, as in the paper."""
    blends_in_fade: bool = True
    """Blend the losses of both resolutions during a fade-in."""
    vgg_weights: str = "download"
    """torchvision's VGG19 file, `download` to fetch it once, or `random` (seeded; for trials)."""
    vgg_seed: NonNegativeInt = 0
    """Seed of the weights where they are `random`."""
    vgg_width: PositiveInt = 64
    """Channels of the first block where the weights are `random`, a multiple of 8; VGG19 itself
    has 64."""
    feature_statistics: str = MEASURE
    """Normalisation of features per channel: `measure` takes mean and scale from training
    images, `none` leaves features as they are, anything else is the path of a statistics file."""
    statistics_images: PositiveInt = 512
    """Training images that `feature_statistics` is measured on."""

    @property
    def statistics_file(self) -> str | None:
        """Path of the file of statistics, where there is one."""
        return None if self.feature_statistics in {MEASURE, "none"} else self.feature_statistics

    def weights_by_resolution(self) -> dict[int, dict[str, float]]:
        """Weights of the layers, the pixels among them where they count."""
        pixels = {IMAGE: self.pixel_weight} if self.pixel_weight else {}
        return {resolution: {**pixels, **layers} for resolution, layers in self.layers.items()}

    def layer_names(self) -> tuple[str, ...]:
        """Every layer of VGG19 that is compared somewhere, shallowest first."""
        names = {name for layers in self.layers.values() for name in layers} - {IMAGE}
        return tuple(sorted(names, key=lambda name: len(convolutions_needed([name]))))


class AdversarialSettings(_Frozen):
    """A discriminator in training, as in the paper's ablation; the anomaly score ignores it.

    It shares the optimiser's settings. The defaults are those of the public code, whose ablation
    has weights of 0.1 and 1 at a learning rate of 2e-4.
    """

    weight: NonNegativeFloat = 0.0
    """Weight of the adversarial term; 0 trains without a discriminator."""
    critic_steps: PositiveInt = 2
    """Steps of the discriminator before each step of the autoencoder."""
    gradient_weight: NonNegativeFloat = 10.0
    """Weight of the gradient penalty (WGAN-GP)."""
    drift_weight: NonNegativeFloat = 1e-3
    """Weight of the discriminator's squared output, which keeps it near 0."""

    @property
    def steps_before_each(self) -> int:
        """Steps of the discriminator before each of the autoencoder; 0 without one."""
        return self.critic_steps if self.weight else 0


class OptimiserSettings(_Frozen):
    """The optimiser, Adam."""

    learning_rate: PositiveFloat = 1e-3
    """Step size. Smaller is slower and steadier; the paper uses 1e-3 and, for AP radiographs,
    5e-4."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the running mean of gradients, per step."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the running mean of squared gradients, per step."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty on the weights."""

    @property
    def betas(self) -> tuple[float, float]:
        """Both decays, as PyTorch takes them."""
        return self.beta1, self.beta2


class AccelerationSettings(_Frozen):
    """Speed at the same precision; the defaults leave the loss unchanged."""

    uses_channels_last: bool = True
    """Store images channels-last, which convolutions read fastest; only rounding differs."""
    target_cache_bytes: NonNegativeInt = 2 * 2**30
    """Memory for the features of the training images, in bytes. They are computed once per
    stage if they fit and no augmentation is on; 0 never keeps them."""
    images_on_device: WhereHeld = "auto"
    """Hold the training images in the GPU's memory: `auto` does so where they need at most half
    of what is free."""
    keeps_freed_memory: bool = True
    """Reuse the memory of a step for the next one on CPUs instead of returning it to the system
    (glibc only)."""
    compiles_steps: bool = False
    """Compile forward and backward pass for each stage, on GPUs into CUDA graphs. Needs a C++
    compiler; results differ in their last digits."""
    allows_tf32: bool = False
    """Let GPUs round single-precision factors to TF32: faster, less exact."""
    fuses_optimiser: bool = True
    """Run Adam as one kernel on GPUs."""


class ImageSettings(_Frozen):
    """Crop and augmentation of the dataset's images."""

    crop_px: NonNegativeInt = 0
    """Side of a square crop in px, at least the final resolution, to which it is averaged down;
    0 takes the largest square."""
    crops_at_random: bool = False
    """Crop training images at random places; validation and scoring crop the centre."""
    flips_at_random: bool = False
    """Mirror training images at random, each axis half of the time."""


class QualitySettings(_Frozen):
    """Tiles that training leaves out by the dataset's quality columns; validation keeps them."""

    min_laplacian_variance: NonNegativeFloat | None = None
    """Smallest variance of the Laplacian; blurred tiles have less."""
    max_saturation: Fraction | None = None
    """Largest mean saturation, 0 to 1; tiles of one strong colour have more."""
    max_blank_fraction: Fraction | None = None
    """Largest share of bare glass, 0 to 1."""
    max_pen_fraction: Fraction | None = None
    """Largest share of pen marks, 0 to 1."""
    max_fold_fraction: Fraction | None = None
    """Largest share of what looks like folded tissue, 0 to 1."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """For each column that has a limit, the least and the greatest value."""
        given = self.model_dump(exclude_none=True)
        return {
            name[4:]: (limit, math.inf) if name.startswith("min_") else (-math.inf, limit)
            for name, limit in given.items()
        }


class TrainSettings(_Frozen):
    """All settings of a training."""

    network: NetworkSettings = NetworkSettings()
    growth: GrowthSettings = GrowthSettings()
    loss: LossSettings
    l1_weight: NonNegativeFloat = 0.0
    """Weight of the plain L1 distance of pixels in the training loss, as in the paper's ablation
    (0.1 or 1); the anomaly score ignores it."""
    adversarial: AdversarialSettings = AdversarialSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    images: ImageSettings = ImageSettings()
    quality: QualitySettings = QualitySettings()
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of images and the augmentation."""
    precision: Literal["fp32", "bf16_features", "bf16"] = "fp32"
    """Arithmetic: `fp32`, `bf16_features` (VGG19 in bfloat16, which does nearly all the work) or
    `bf16` (the autoencoder too). Twice to four times as fast at losses within a thousandth."""
    acceleration: AccelerationSettings = AccelerationSettings()
    log_every: PositiveInt = 50
    """Steps between two records of the loss."""
    validate_every: PositiveInt = 2_000
    """Steps between two validations; the end of a stage validates too."""
    checkpoint_every: PositiveInt = 1_000
    """Steps between two checkpoints, the most that a crash can cost; the end of a stage writes
    one too."""
    checkpoints_kept: PositiveInt = 2
    """Number of the latest checkpoints that are kept; the best one is kept in any case."""
    validation_images: PositiveInt = 2_000
    """Largest number of normal, and of anomalous, images in each validation."""
    cpu_threads: NonNegativeInt = 0
    """Threads of each worker that trains on CPUs; 0 divides the cores among the workers. Tiny
    networks are fastest with 1."""
    cache_bytes: NonNegativeInt = 4 * 2**30
    """Memory for the training images of a worker, in bytes; if they need more they are read
    chunk by chunk."""

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
                raise ValueError(
                    f"loss.layers says nothing of {resolution} px: give one entry for all "
                    "resolutions, or one for each"
                )
        if self.loss.vgg_weights == "random" and self.loss.vgg_width % 8:
            raise ValueError(f"loss.vgg_width is {self.loss.vgg_width}: give a multiple of 8")
        self.loss.layer_names()  # refuses layers that VGG19 has not
        crop = self.images.crop_px
        if crop and crop < self.growth.final_resolution:
            raise ValueError(
                f"images.crop_px is {crop} px, less than growth.final_resolution "
                f"{self.growth.final_resolution} px: crop more or grow less"
            )
        return self


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
