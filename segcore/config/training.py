"""The section `recipes`: how a network is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segcore.config.section import Count, Fraction, Long, Name, NotNegative, Positive, Rate, Section


class Constant(Section):
    """The learning rate stays."""

    kind: Literal["constant"]


class Poly(Section):
    """The learning rate falls to 0 as (1 - step / steps)^power."""

    kind: Literal["poly"]
    power: Positive


class Steps(Section):
    """The learning rate is multiplied by `factor` every so many steps."""

    kind: Literal["step"]
    every: Long
    factor: Fraction


class Uniform(Section):
    """Every sample comes once an epoch."""

    kind: Literal["uniform"]


class ByClass(Section):
    """Classes seldom seen come more often: first a class is drawn, then a sample that has it among its tags."""

    kind: Literal["by_class"]
    power: Annotated[float, Field(gt=0, le=1)]
    """A class of n samples is drawn as n^(1 - power): 1 draws all classes equally often, less lies in between."""


class RecipeParams(Section):
    """One of `recipes`, with what it takes from `recipes.common`; it may serve several classifiers or systems."""

    steps: Long
    batch_size: Count
    """Samples of one optimiser step, over all processes and accumulated micro-batches."""
    sampling: Annotated[Uniform | ByClass, Field(discriminator="kind")]
    """Which samples come how often."""
    accumulate: Count
    """Micro-batches that a step is cut into, each weighing the same; batch normalisation sees one at a time."""
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    momentum: Rate
    weight_decay: NotNegative
    bias_multiplier: Positive
    """Learning rate of biases, which never decay, over that of weights and of normalisation."""
    multipliers: dict[Name, NotNegative]
    """Learning rate of named groups of parameters over that of all others; 0 freezes a group. Every network has the
    group `pretrained`: layers that start from a pre-training."""
    schedule: Annotated[Constant | Poly | Steps, Field(discriminator="kind")]
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000_000)]
    clip_norm: Positive | None
    precision: Literal["auto", "fp32", "bf16"]
    """auto: bf16 on a GPU that has it, else fp32. A CPU uses bf16 only when told to, so that all give the same."""
    channels_last: bool
    compile: bool
    """Whether torch.compile makes the network faster; on a CPU that needs a C++ compiler."""
    checkpoint_every: Long
    """Steps after which a run that is killed can go on."""
    workers: Annotated[int, Field(ge=0, le=256)]
    """Processes that load images ahead; they change no result."""

    @property
    def class_power(self) -> float | None:
        """The power of sampling by class, or None if samples are drawn uniformly."""
        return self.sampling.power if isinstance(self.sampling, ByClass) else None

    @model_validator(mode="after")
    def _batch_divides(self) -> "RecipeParams":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")
        return self
