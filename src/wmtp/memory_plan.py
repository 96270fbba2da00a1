"""How much memory a run will hold at most, whether that fits, and what would fit instead.

The figures come from training steps that are simulated without numbers (``audit.simulate``), so
that no model is loaded, and the device need not be there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from wmtp.audit import Part
from wmtp.audit.simulate import simulate_here
from wmtp.config import Settings
from wmtp.errors import DeviceError
from wmtp.model.attention import TILE_BYTES
from wmtp.runtime.device import Kind, MemoryLimit, describe_device

TILES_HELD: Final = 3
"""Scores, their gradient and their mask, of one tile, in the backward pass of one layer."""

WORDS: dict[Part, str] = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "loss": "loss workspace",
    "reference": "reference model",
}


@dataclass(frozen=True)
class Shape:
    """What a run may change to need less memory.

    Attributes:
        rows: of a micro-batch.
        accumulation: micro-batches of a step.
        checkpointing: blocks are computed again in the backward pass.
        precision: of the products.
        length: tokens of a row.
        tokens_per_step: where the recipe fixes them, and the accumulation follows.
    """

    rows: int
    accumulation: int
    checkpointing: bool
    precision: str
    length: int
    tokens_per_step: int | None = None

    @property
    def step_rows(self) -> int:
        """Rows of one step."""
        if self.tokens_per_step is not None:
            return self.tokens_per_step // self.length
        return self.rows * self.accumulation

    def settings(self, settings: Settings) -> Settings:
        """The settings in this shape."""
        config, recipe = settings.config, settings.recipe
        rows = {"batch_size": self.rows, "max_length": self.length}
        train_data = recipe.data.train.model_copy(update=rows)
        train = {
            "tokens_per_step": None,
            "gradient_accumulation": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
        }
        recipe = recipe.model_copy(
            update={
                "data": recipe.data.model_copy(update={"train": train_data}),
                "train": recipe.train.model_copy(update=train),
            }
        )
        devices = config.devices.model_copy(update={"mixed_precision": self.precision})
        config = config.model_copy(update={"devices": devices})
        return settings.model_copy(update={"config": config, "recipe": recipe})

    def changes(self, before: "Shape") -> str:
        """How to come here from another shape, in keys of the settings."""
        keys = {
            "data.train.batch_size": (self.rows, before.rows),
            "train.gradient_accumulation": (self.accumulation, before.accumulation),
            "train.gradient_checkpointing": (self.checkpointing, before.checkpointing),
            "devices.mixed_precision": (self.precision, before.precision),
            "data.train.max_length": (self.length, before.length),
        }
        if self.tokens_per_step is not None:
            del keys["train.gradient_accumulation"]
        return ", ".join(
            f"{key}: {str(new).lower()}" for key, (new, old) in keys.items() if new != old
        )


@dataclass(frozen=True)
class Prediction:
    """The most memory that tensors on the device hold at one time.

    Attributes:
        parts: bytes by who holds them.
        parameters: numbers of the model and the value head.
    """

    parts: dict[Part, int]
    parameters: int

    @property
    def peak_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def line(self) -> str:
        """For a person, on one line."""
        held = ", ".join(
            f"{WORDS[part]} {mebibytes(size)}" for part, size in self.parts.items() if size
        )
        return f"{mebibytes(self.peak_bytes)} MiB predicted ({held})"


@dataclass(frozen=True)
class MemoryPlan:
    """A run's memory beside what there is.

    Attributes:
        kind: of device.
        shape: as the settings ask for it.
        prediction: of that shape.
        limit: None where it is not known.
        largest: the shape of the same steps with the largest micro-batch that fits; None if not
            even a single row does, or no limit is known.
        ways_out: changes that would make it fit, if it does not.
    """

    kind: Kind
    shape: Shape
    prediction: Prediction
    limit: MemoryLimit | None
    largest: Shape | None
    ways_out: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the run stays within the limit, if there is one."""
        return self.limit is None or self.prediction.peak_bytes <= self.limit.bytes

    def lines(self) -> list[str]:
        """The plan for a person."""
        shape = self.shape
        said = [
            f"device           {self.kind}, {shape.precision}",
            f"parameters       {self.prediction.parameters:,}",
            f"micro-batch      {shape.rows} rows of {shape.length} tokens, {shape.accumulation} "
            f"a step: {shape.step_rows * shape.length:,} tokens",
            f"peak memory      {mebibytes(self.prediction.peak_bytes)} MiB predicted",
        ]
        said += [
            f"  {WORDS[part]:<15}{mebibytes(size):>9} MiB"
            for part, size in self.prediction.parts.items()
            if size
        ]
        if self.limit is None:
            return [*said, "limit            not known here: --memory GB says how much there is"]
        said.append(f"limit            {mebibytes(self.limit.bytes)} MiB, {self.limit.reason}")
        if self.largest is not None:
            rest = f", train.gradient_accumulation {self.largest.accumulation}"
            said.append(
                f"largest fitting  {self.largest.rows} rows"
                f"{'' if self.largest.tokens_per_step else rest} for the same tokens a step"
            )
        return said

    def refuse(self) -> None:
        """Refuse a run that does not fit.

        Raises:
            DeviceError: names what would fit.
        """
        if self.fits:
            return
        assert self.limit is not None
        instead = " Or ".join(f"set {way}." for way in self.ways_out)
        raise DeviceError(
            f"the run would hold {mebibytes(self.prediction.peak_bytes)} MiB on {self.kind}, and "
            f"the limit is {mebibytes(self.limit.bytes)} MiB ({self.limit.reason}).\n"
            f"{(instead[:1].upper() + instead[1:]) or 'Train a smaller model.'}"
        )


def mebibytes(size: int) -> str:
    """A size for a person, without its unit."""
    return f"{size / 2**20:,.0f}"


def shape_of(settings: Settings) -> Shape:
    """The shape that settings ask for."""
    recipe = settings.recipe
    return Shape(
        rows=recipe.micro_batch_rows,
        accumulation=-(-recipe.rows_per_step // recipe.micro_batch_rows),
        checkpointing=recipe.train.gradient_checkpointing,
        precision=settings.config.devices.mixed_precision,
        length=recipe.data.train.max_length,
        tokens_per_step=recipe.train.tokens_per_step,
    )


def predict(
    settings: Settings,
    kind: Kind,
    *,
    scores_cached: bool = False,
    vocab_size: int | None = None,
) -> Prediction:
    """The peak of a run's steps.

    Args:
        settings: config and recipe.
        kind: of device.
        scores_cached: the reference model's scores come with the data.
        vocab_size: of the tokenizer, where it is known.

    Raises:
        WmtpError: a config or tokenizer that the sizes depend on cannot be read.
    """
    shape = shape_of(settings)
    # more micro-batches than two hold no more: the second one has the gradients of the first
    short = replace(shape, accumulation=min(2, shape.accumulation)).settings(settings)
    device = describe_device(kind, settings.config.devices.mixed_precision)
    trace = simulate_here(
        short,
        device_type="cpu",
        steps=2,
        scores_cached=scores_cached,
        vocab_size=vocab_size,
        device=device.stand_in(),
    )
    parts = dict(trace.peak_by_part)
    if device.tiled_attention:  # hundreds of tiles a layer would be simulated for what they add
        parts["activations"] += TILES_HELD * TILE_BYTES
    return Prediction(parts, trace.parameters)


def plan_memory(
    settings: Settings,
    kind: Kind,
    limit: MemoryLimit | None,
    *,
    scores_cached: bool = False,
) -> MemoryPlan:
    """Predict a run's memory, and look for what fits.

    Args:
        settings: config and recipe.
        kind: of device.
        limit: how much there is.
        scores_cached: the reference model's scores come with the data.

    Raises:
        WmtpError: a config or tokenizer that the sizes depend on cannot be read.
    """
    known: dict[Shape, Prediction] = {}

    def predicted(shape: Shape) -> Prediction:
        if shape not in known:
            known[shape] = predict(shape.settings(settings), kind, scores_cached=scores_cached)
        return known[shape]

    def fits(shape: Shape) -> bool:
        return limit is not None and predicted(shape).peak_bytes <= limit.bytes

    shape = shape_of(settings)
    prediction = predicted(shape)
    if limit is None:
        return MemoryPlan(kind, shape, prediction, None, None, ())
    largest = largest_fitting(shape, fits)
    ways_out: list[str] = []
    if not fits(shape):
        if largest is not None:
            ways_out.append(largest.changes(shape))
        for other in leaner(shape):
            found = largest_fitting(other, fits)
            if found is not None and (largest is None or found.rows > largest.rows):
                ways_out.append(found.changes(shape))
                break
    return MemoryPlan(kind, shape, prediction, limit, largest, tuple(ways_out))


def largest_fitting(shape: Shape, fits: Callable[[Shape], bool]) -> Shape | None:
    """The same steps in the largest micro-batches that fit; None if single rows do not.

    Memory grows with the rows of a micro-batch, so that halving the candidates finds it.
    """
    rows = shape.step_rows
    candidates = [
        replace(shape, rows=divisor, accumulation=rows // divisor)
        for divisor in range(1, rows + 1)
        if rows % divisor == 0
    ]
    if not fits(candidates[0]):
        return None
    fitting, beyond = 0, len(candidates)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if fits(candidates[middle]):
            fitting = middle
        else:
            beyond = middle
    return candidates[fitting]


def leaner(shape: Shape) -> Iterator[Shape]:
    """The same steps with less memory, what costs least first; then shorter rows."""
    recomputed = replace(shape, checkpointing=True)
    in_16_bits = replace(shape, precision="bf16")
    options = [recomputed, in_16_bits, replace(in_16_bits, checkpointing=True)]
    length = shape.length
    while length >= 256:
        length //= 2
        options.append(replace(recomputed, length=length))
    for option in options:
        if option != shape and not (shape.precision == "fp16" and option.precision == "bf16"):
            yield option
