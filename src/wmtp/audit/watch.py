"""Looking on while PyTorch computes with tensors that have no numbers.

``Watch`` sees every call that would reach a device. It notes what went in and came out, and
follows the memory of each storage from the call that made it until nothing refers to it any more.
"""

import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wmtp.audit.trace import PARTS, Allocation, Form, Operation, Part, Trace

LARGEST_KEPT = 8
"""Of each part, in a report."""

_OWN_FOLDER = str(Path(__file__).parent)
_LOSS_FOLDER = str(Path(__file__).parent.parent / "loss")
_TORCH_FOLDER = str(Path(torch.__file__).parent)
_LIBRARIES = str(Path(torch.__file__).parent.parent)
_PACKAGES = str(Path(__file__).parent.parent.parent)

ATEN = torch.ops.aten

NO_WORK = frozenset({"detach", "alias", "lift_fresh"})
"""Operations that no device ever sees; the last one brings what was made outside of PyTorch."""


@dataclass(slots=True)
class _Life:
    """One storage: from which event to which it was held, by whom, and what it was made for."""

    bytes: int
    born: int
    part: Part
    made_for: Form
    operation: str
    where: str
    died: int | None = None


@dataclass(slots=True)
class _Seen:
    """How often a kind of call was made, and in which steps."""

    where: str
    calls: int = 0
    steps: set[int] = field(default_factory=set)


@final
class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation and every byte on one type of device.

    To be entered inside a ``FakeTensorMode``, whose tensors have no numbers. Where the program
    reads a number back it is told 1, or True; where it asks which of some flags are set, all of
    them. Both are noted like any other operation.

    Args:
        device_type: which tensors count.
        micro_batch: the function that learns a micro-batch.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; the check would take a tenth of the time."""
        return False

    def __init__(self, device_type: str, micro_batch: CodeType) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type = device_type
        self.step = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._micro_batch = micro_batch
        self._main_thread = threading.get_ident()
        self._event = 0
        self._peak_event = 0
        self._peak_of_steps: dict[int, int] = {}
        self._lives: list[_Life] = []
        self._alive: dict[int, _Life] = {}
        self._seen: dict[tuple[Any, ...], _Seen] = {}

    def begin_step(self, step: int) -> None:
        """What follows belongs to this step, from 1 on."""
        self.step = step
        self._peak_of_steps[step] = self.live_bytes

    def tag(self, tensors: Iterable[Tensor | None], part: Part) -> None:
        """Say whose memory these tensors' is, for as long as they are held."""
        for tensor in tensors:
            if tensor is not None and _device_type(tensor) == self.device_type:
                self._hold(tensor, "", "")
                self._alive[tensor.untyped_storage()._cdata].part = part

    # what was seen ----------------------------------------------------------------------------

    def trace(self, parameters: int) -> Trace:
        """Everything so far."""
        return Trace(
            device_type=self.device_type,
            steps=self.step,
            peak_bytes=self.peak_bytes,
            peak_by_part=self.peak_by_part(),
            peak_of_steps=self.peak_of_steps(),
            operations=self.operations(),
            largest_tensors=self.largest(),
            dtypes_by_part=self.dtypes_by_part(),
            parameters=parameters,
        )

    def operations(self) -> tuple[Operation, ...]:
        """Every kind of call so far, in the order of the first of each."""
        return tuple(
            Operation(name, inputs, outputs, inside, s.where, tuple(sorted(s.steps)), s.calls)
            for (name, inputs, outputs, inside), s in self._seen.items()
        )

    def peak_by_part(self) -> dict[Part, int]:
        """Who held how much at the peak."""
        held = dict.fromkeys(PARTS, 0)
        for life in self._lives:
            if life.born <= self._peak_event and self._peak_event < (life.died or sys.maxsize):
                held[life.part] += life.bytes
        return held

    def dtypes_by_part(self) -> dict[Part, tuple[str, ...]]:
        """What floating-point numbers each part ever held."""
        found = {(life.part, life.made_for.dtype) for life in self._lives}
        floats = sorted((part, dtype) for part, dtype in found if "float" in dtype)
        return {part: tuple(dtype for p, dtype in floats if p == part) for part in PARTS}

    def peak_of_steps(self) -> tuple[int, ...]:
        """The peak of step 0, 1, ..."""
        return tuple(self._peak_of_steps.get(step, 0) for step in range(self.step + 1))

    def largest(self) -> tuple[Allocation, ...]:
        """The largest storages of each part, each form once."""
        found: list[Allocation] = []
        for part in PARTS:
            forms: dict[tuple[Any, ...], Allocation] = {}
            for life in sorted(self._lives, key=lambda one: -one.bytes):
                if life.part == part and len(forms) < LARGEST_KEPT:
                    made = life.made_for
                    one = Allocation(
                        life.bytes, part, made.dtype, made.shape, life.operation, life.where
                    )
                    forms.setdefault((made.shape, made.dtype, life.operation, life.where), one)
            found += forms.values()
        return tuple(found)

    # looking on -------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # a question about a tensor
            return func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outcome = _told(func, args, kwargs)
        outputs = [x for x in tree_leaves(outcome) if isinstance(x, Tensor)]
        if any(_device_type(x) == self.device_type for x in (*inputs, *outputs)):
            self._note(_name(func), inputs, outputs)
        return outcome

    def _note(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        where, in_loss, in_micro_batch = self._place()
        if name not in NO_WORK:
            forms_in, forms_out = tuple(map(_form, inputs)), tuple(map(_form, outputs))
            key = (name, forms_in, forms_out, in_micro_batch)
            seen = self._seen.setdefault(key, _Seen(where))
            seen.calls += 1
            seen.steps.add(self.step)
        for tensor in outputs:
            if _device_type(tensor) == self.device_type:
                self._hold(tensor, name, where, "loss" if in_loss else "activations")

    def _hold(self, tensor: Tensor, operation: str, where: str, part: Part = "activations") -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._alive:
            return
        self._event += 1
        life = _Life(storage.nbytes(), self._event, part, _form(tensor), operation, where)
        self._alive[place] = life
        self._lives.append(life)
        self.live_bytes += life.bytes
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self._peak_event = self.live_bytes, self._event
        self._peak_of_steps[self.step] = max(self._peak_of_steps.get(self.step, 0), self.live_bytes)
        # of the storage and not of a tensor: views share it, and outlive what they were made from
        weakref.finalize(storage, partial(self._let_go, place, life)).atexit = False

    def _let_go(self, place: int, life: _Life) -> None:
        self._event += 1
        life.died = self._event
        self.live_bytes -= life.bytes
        del self._alive[place]

    def _place(self) -> tuple[str, bool, bool]:
        """Whose call this is: the line, whether the loss made it, whether in a micro-batch."""
        where, in_loss = "", False
        for frame in _frames(sys._getframe(1)):
            file = frame.f_code.co_filename
            if frame.f_code is self._micro_batch:
                return where or f"{_short(file)}:{frame.f_lineno}", in_loss, True
            if file.startswith(_LOSS_FOLDER):
                in_loss = True
            if not where and not file.startswith((_TORCH_FOLDER, _OWN_FOLDER, "<")):
                where = f"{_short(file)}:{frame.f_lineno}"
        if threading.get_ident() == self._main_thread:
            return where, in_loss, False
        # autograd has a thread for each device; who waits for it tells what is being learned
        waiting = _frames(sys._current_frames()[self._main_thread])
        inside = any(frame.f_code is self._micro_batch for frame in waiting)
        return where or "backward", in_loss, inside


def _told(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call gives; where it would depend on numbers that are not there, what is assumed."""
    if not any(isinstance(x, FakeTensor) for x in tree_leaves(args)):
        return func(*args, **kwargs)
    if func is ATEN._local_scalar_dense.default:
        dtype = args[0].dtype
        return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
    if func in (ATEN.equal.default, ATEN.is_nonzero.default):
        return True
    if func is ATEN.nonzero.default:
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
    if func is ATEN.masked_select.default:
        return (args[0] * args[1]).flatten()
    if func is ATEN._unique2.default:
        flat = args[0].new_empty(args[0].numel())
        return flat, args[0].new_empty(args[0].shape, dtype=torch.int64), flat.long()
    if func in (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default):
        return func(args[0], _as_numbers(args[1]), *args[2:], **kwargs)
    return func(*args, **kwargs)


def _as_numbers(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Flags as the places that they stand for, if all are set."""
    numbers: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            place = index.new_empty(index.numel(), dtype=torch.int64)
            numbers += [place] * index.dim()
        else:
            numbers.append(index)
    return numbers


def _form(tensor: Tensor) -> Form:
    return Form(
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        tensor.stride(),
        _device_type(tensor),
    )


def _device_type(tensor: Tensor) -> str:
    """Of a fake tensor without asking, which is an operation of its own."""
    return (tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device).type


def _name(func: Any) -> str:
    """``add.Tensor``; an operation of another library keeps its own name in front."""
    name = func._schema.name.removeprefix("aten::")
    overload = func._schema.overload_name
    return f"{name}.{overload}" if overload else str(name)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _short(file: str) -> str:
    for folder in (_PACKAGES, _LIBRARIES):
        if file.startswith(folder):
            return file[len(folder) + 1 :]
    return file
