"""What training on Apple's GPUs must not ask of them; each rule looks at a trace of steps.

A rule is a function from a trace and what is expected of the run to findings; no finding means
that the rule holds.

Source:
    PyTorch 2.13: ``native_functions.yaml``, ``aten/src/ATen/native/mps``.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from wmtp.audit.kernels import kernels
from wmtp.audit.reviewed import REVIEWED
from wmtp.audit.trace import Allocation, Form, Operation, Part, Trace
from wmtp.config import Settings
from wmtp.model.llama_shape import LlamaShape
from wmtp.runtime.device import Device

LARGEST_DIMENSION: Final = 2**31 - 1
"""MPSGraph counts in 32 bits, and so do many Metal kernels: along a dimension and in all."""

LARGEST_PRODUCT: Final = 2**32
"""Numbers in the result of a matrix product."""

LARGEST_RANK: Final = 5

FORBIDDEN_DTYPES: Final = ("float64", "complex128", "float8")

PRODUCTS: Final = frozenset(
    {"mm", "mm.out", "mm.dtype", "addmm", "addmm_", "addmm.out", "bmm", "bmm.out", "baddbmm",
     "baddbmm_", "mv", "addmv", "dot", "vdot", "linear", "addbmm"}
)  # fmt: skip

HOST_SYNCS: Final = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
     "unique_consecutive", "unique_dim_consecutive", "repeat_interleave.Tensor", "bincount",
     "equal", "is_nonzero", "histc"}
)  # fmt: skip

ON_MPS: Final = "mps"


@dataclass(frozen=True)
class Expected:
    """What a run's settings let expect of its trace.

    Attributes:
        largest_bytes: of one tensor of the loss or of activations: the loss's workspace.
        logits: numbers of all logits of all heads of a micro-batch, which must never be there.
        attention: numbers of one layer's attention matrices; None where rows are so short that
            they may be there.
        fused_adamw: AdamW moves parameters, and has a kernel.
        product_dtype: of the trunk's matrix products.
        scaled: the loss has a scale that is read once a step, as fp16 needs.
    """

    largest_bytes: int
    logits: int
    attention: int | None
    fused_adamw: bool
    product_dtype: str
    scaled: bool


def expected_of(
    settings: Settings,
    shape: LlamaShape,
    device: Device,
    *,
    tiled_from: int,
    stage1: bool = False,
) -> Expected:
    """What to expect of a run.

    Args:
        settings: of the run.
        shape: of its trunk.
        device: what it computes on.
        tiled_from: in rows of so many tokens and more no matrix ``[T, T]`` may be there.
        stage1: the steps are of the critic's stage 1.
    """
    recipe = settings.recipe
    B, S = recipe.micro_batch_rows, recipe.data.train.max_length
    workspace = device.loss_workspace(recipe.loss.chunk_rows)
    rows = workspace.rows_that_fit(shape.vocab_size, 4)
    return Expected(
        largest_bytes=rows * shape.vocab_size * 4,
        logits=B * S * recipe.model.heads.horizon * shape.vocab_size,
        attention=B * shape.num_heads * S * S if tiled_from <= S else None,
        # with Muon, a model of hidden matrices alone might leave it nothing
        fused_adamw=device.fused_adamw and (stage1 or recipe.optim.name == "adamw"),
        product_dtype=str(device.compute_dtype).removeprefix("torch."),
        scaled=device.precision == "fp16",
    )


@dataclass(frozen=True)
class Finding:
    """Something that a rule forbids.

    Attributes:
        rule: the name of the rule.
        what: the operation or tensor, and why not.
        where: the line of code, or "backward".
    """

    rule: str
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what} at {self.where}"


Found = Iterator[tuple[str, str]]
Rule = Callable[[Trace, Expected], Found]


def every_operation_has_a_kernel(trace: Trace, _: Expected) -> Found:
    """A Metal kernel, or a composite that was reviewed."""
    for one in trace.operations:
        kernel = kernels().get(one.name)
        if kernel == "metal" or (kernel == "composite" and one.name in REVIEWED):
            continue
        if kernel == "composite":
            yield f"{one.name} is composite and not reviewed (audit/reviewed.py)", one.where
        else:
            why = "has no MPS kernel" if kernel is None else "runs on the CPU"
            yield f"{one.name} {why}", one.where


def every_dtype_exists(trace: Trace, _: Expected) -> Found:
    """No float64, complex128 or float8."""
    for one in trace.operations:
        for form in _on_device(one):
            if form.dtype.startswith(FORBIDDEN_DTYPES):
                yield f"{one.name} on {form}", one.where


def ranks_are_small(trace: Trace, _: Expected) -> Found:
    """At most five dimensions."""
    for one in trace.operations:
        for form in _on_device(one):
            if len(form.shape) > LARGEST_RANK:
                yield f"{one.name} on {form}, of {len(form.shape)} dimensions", one.where


def sizes_are_legal(trace: Trace, _: Expected) -> Found:
    """Nothing that 32 bits cannot count."""
    for one in trace.operations:
        for form in _on_device(one):
            numbers = math.prod(form.shape)
            if max(form.shape, default=0) > LARGEST_DIMENSION or numbers > LARGEST_DIMENSION:
                yield f"{one.name} on {form}, of {numbers:,} numbers", one.where
        for form in one.outputs if one.name in PRODUCTS else ():
            if math.prod(form.shape) > LARGEST_PRODUCT:
                yield f"{one.name} gives {form}", one.where


def factors_are_not_expanded(trace: Trace, _: Expected) -> Found:
    """No factor of a matrix product has a stride of 0: several macOS versions read it wrongly."""
    for one in trace.operations:
        for form in one.inputs if one.name in PRODUCTS else ():
            if any(s == 0 and n > 1 for s, n in zip(form.stride, form.shape, strict=True)):
                yield f"{one.name} with {form} of strides {list(form.stride)}", one.where


def no_waiting_in_a_micro_batch(trace: Trace, _: Expected) -> Found:
    """While a micro-batch is learned the host neither reads anything back nor sends anything."""
    for one in trace.operations:
        if one.in_micro_batch and waits(one):
            yield f"{one} waits for the device", one.where
        if one.in_micro_batch and one.steps[-1] > 1 and _comes_from_host(one):
            yield f"{one} comes from the host", one.where


def little_waiting_between_micro_batches(trace: Trace, expected: Expected) -> Found:
    """Nothing is read back between micro-batches but fp16's loss scale, once a step."""
    reads = [
        one for one in trace.operations if not one.in_micro_batch and one.steps[-1] and waits(one)
    ]
    if expected.scaled and sum(one.calls for one in reads) <= trace.steps:
        return
    for one in reads:
        yield f"{one} waits for the device {one.calls} times in {trace.steps} steps", one.where


def shapes_repeat(trace: Trace, _: Expected) -> Found:
    """After the second step nothing is new, and micro-batches are all alike."""
    for one in trace.operations:
        missing = sorted(set(range(2, trace.steps + 1)) - set(one.steps))
        if one.steps[-1] > 1 and missing and (one.in_micro_batch or one.steps[0] > 2):
            yield f"{one} in steps {list(one.steps)} and not in {missing}", one.where


def tensors_are_small(trace: Trace, expected: Expected) -> Found:
    """No tensor but weights, gradients and states exceeds the loss's workspace."""
    for held in _working(trace):
        if held.bytes > expected.largest_bytes:
            yield f"{held}, more than {expected.largest_bytes / 2**20:,.1f} MiB", held.where


def logits_never_exist(trace: Trace, expected: Expected) -> Found:
    """No tensor has as many numbers as the logits of all heads, ``[B, S, H, V]``."""
    if expected.logits * 4 <= expected.largest_bytes:  # so few that a chunk may be all of them
        return
    for one in trace.operations:
        for form in one.outputs:
            if math.prod(form.shape) >= expected.logits:
                yield f"{one.name} gives {form}", one.where


def attention_matrices_never_exist(trace: Trace, expected: Expected) -> Found:
    """No tensor has as many numbers as a layer's attention, ``[B, heads, T, T]``."""
    for held in _working(trace):
        numbers = math.prod(held.shape)
        # the loss's workspace is larger, and is no matrix of attention
        if expected.attention is not None and held.part != "loss" and numbers >= expected.attention:
            yield f"{held}", held.where


def adamw_is_fused(trace: Trace, expected: Expected) -> Found:
    """AdamW is one kernel for all parameters."""
    fused = {"_fused_adamw_", "_fused_adamw_.tensor_lr"}
    if expected.fused_adamw and not fused & trace.operation_names:
        yield "AdamW is not fused", "optimizer"


def masters_are_float32(trace: Trace, expected: Expected) -> Found:
    """Weights, gradients and states are float32, and products are of the asked precision."""
    parts: tuple[Part, ...] = ("weights", "gradients", "optimizer")
    for part in parts:
        if set(trace.dtypes_by_part[part]) - {"float32"}:
            yield f"{part} are {', '.join(trace.dtypes_by_part[part])}", part
    products = {f.dtype for one in trace.operations if one.name in PRODUCTS for f in one.inputs}
    if products and expected.product_dtype not in products:
        yield f"products are {', '.join(sorted(products))}, not {expected.product_dtype}", "trunk"


def rotations_are_built_once(trace: Trace, _: Expected) -> Found:
    """Cosines and sines are computed before the first step or in it, in float32."""
    for one in trace.operations:
        if one.name in ("cos", "sin", "cos.out", "sin.out"):
            if one.steps[-1] > 1:
                yield f"{one} in steps {list(one.steps)}", one.where
            if any(form.dtype != "float32" for form in one.outputs):
                yield f"{one} is not float32", one.where


RULES: Final[tuple[Rule, ...]] = (
    every_operation_has_a_kernel,
    every_dtype_exists,
    ranks_are_small,
    sizes_are_legal,
    factors_are_not_expanded,
    no_waiting_in_a_micro_batch,
    little_waiting_between_micro_batches,
    shapes_repeat,
    tensors_are_small,
    logits_never_exist,
    attention_matrices_never_exist,
    adamw_is_fused,
    masters_are_float32,
    rotations_are_built_once,
)


def findings(
    trace: Trace, expected: Expected, rules: Iterable[Rule] = RULES
) -> tuple[Finding, ...]:
    """What the rules find in a trace, each once."""
    return tuple(
        Finding(rule.__name__.replace("_", " "), what, where)
        for rule in rules
        for what, where in dict.fromkeys(rule(trace, expected))
    )


def waits(one: Operation) -> bool:
    """Whether the host must wait for the device to know what this gives."""
    if not any(form.device == ON_MPS for form in one.inputs):
        return False
    if one.name in HOST_SYNCS:
        return True
    if one.name in ("index.Tensor", "index_put_", "index_put"):
        return any(form.dtype in ("bool", "uint8") for form in one.inputs[1 : _indices_end(one)])
    return any(form.device != ON_MPS for form in one.outputs)


def _indices_end(one: Operation) -> int | None:
    """Where the indices of an ``index`` or ``index_put`` end; the latter's values come last."""
    return None if one.name == "index.Tensor" else -1


def _comes_from_host(one: Operation) -> bool:
    """A copy to the device; a single number travels with the command that uses it."""
    return any(form.device == ON_MPS for form in one.outputs) and any(
        form.device != ON_MPS and math.prod(form.shape) > 1 for form in one.inputs
    )


def _on_device(one: Operation) -> Iterator[Form]:
    return (form for form in (*one.inputs, *one.outputs) if form.device == ON_MPS)


def _working(trace: Trace) -> Iterator[Allocation]:
    """The largest tensors that training makes anew in each step."""
    return (held for held in trace.largest_tensors if held.part in ("activations", "loss"))
