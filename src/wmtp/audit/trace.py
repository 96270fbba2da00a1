"""What simulated training steps did: every operation, and who held memory at the peak."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Part = Literal["weights", "gradients", "optimizer", "activations", "loss", "reference"]
"""Who holds memory: ``weights`` are the model's and the value head's, ``reference`` the weights of
a reference model, ``loss`` whatever the loss asks for, ``activations`` all the rest."""

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Form:
    """What can be said of a tensor without its numbers.

    Attributes:
        dtype: as ``float32``.
        shape: sizes.
        stride: in elements; 0 where one number stands for many.
        device: type of the device.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Operation:
    """One kind of call: an operation on tensors of certain forms.

    Attributes:
        name: of ATen, with its overload: ``add.Tensor``.
        inputs: every tensor that went in.
        outputs: every tensor that came out.
        in_micro_batch: while a micro-batch was learned, and not between two.
        where: the first line of code that made such a call, without counting PyTorch's own;
            "backward" for what autograd's own thread does.
        steps: in which steps it was made, from 1 on; 0 is before the first.
        calls: how often.
    """

    name: str
    inputs: tuple[Form, ...]
    outputs: tuple[Form, ...]
    in_micro_batch: bool
    where: str
    steps: tuple[int, ...]
    calls: int

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.inputs))}) at {self.where}"


@dataclass(frozen=True)
class Allocation:
    """A piece of memory that was held at some time.

    Attributes:
        bytes: its size.
        part: who held it.
        dtype: of the tensor that it was made for.
        shape: of that tensor.
        operation: what made it.
        where: as in ``Operation``.
    """

    bytes: int
    part: Part
    dtype: str
    shape: tuple[int, ...]
    operation: str
    where: str

    def __str__(self) -> str:
        return (
            f"{self.bytes / 2**20:,.1f} MiB {self.part} {self.dtype}{list(self.shape)} of "
            f"{self.operation} at {self.where}"
        )


@dataclass(frozen=True)
class Trace:
    """What simulated training steps did.

    Attributes:
        device_type: where the tensors pretended to be.
        steps: optimizer steps.
        peak_bytes: most memory that tensors on the device held at one time. What the allocator
            adds (rounding, caches, fragments) and the program itself are not in it.
        peak_by_part: the same, by who held it; adds up to ``peak_bytes``.
        peak_of_steps: the peak of each step; that of step 0 is of building the model.
        operations: every kind of call on tensors of the device, or that brought some there.
        largest_tensors: the largest pieces of memory of each part that were ever held.
        dtypes_by_part: what floating-point numbers each part ever held, in order of their names.
        parameters: numbers of the model and the value head.
    """

    device_type: str
    steps: int
    peak_bytes: int
    peak_by_part: dict[Part, int]
    peak_of_steps: tuple[int, ...]
    operations: tuple[Operation, ...]
    largest_tensors: tuple[Allocation, ...]
    dtypes_by_part: dict[Part, tuple[str, ...]]
    parameters: int

    @property
    def calls(self) -> int:
        """Calls of all operations."""
        return sum(one.calls for one in self.operations)

    @property
    def operation_names(self) -> frozenset[str]:
        """Which operations there were."""
        return frozenset(one.name for one in self.operations)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def trace_from_dict(values: dict[str, Any]) -> Trace:
    """The trace whose ``as_dict`` went through JSON."""

    def form(found: dict[str, Any]) -> Form:
        sizes = {"shape": tuple(found["shape"]), "stride": tuple(found["stride"])}
        return Form(**{**found, **sizes})

    def operation(found: dict[str, Any]) -> Operation:
        tensors = {name: tuple(map(form, found[name])) for name in ("inputs", "outputs")}
        return Operation(**{**found, **tensors, "steps": tuple(found["steps"])})

    def allocation(found: dict[str, Any]) -> Allocation:
        return Allocation(**{**found, "shape": tuple(found["shape"])})

    return Trace(
        **{
            **values,
            "peak_of_steps": tuple(values["peak_of_steps"]),
            "operations": tuple(map(operation, values["operations"])),
            "dtypes_by_part": {k: tuple(v) for k, v in values["dtypes_by_part"].items()},
            "largest_tensors": tuple(map(allocation, values["largest_tensors"])),
        }
    )
