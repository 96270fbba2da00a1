"""How the steps of decoding run: as they are written, or compiled once for each of their shapes.

A step of a small model spends its time in the calls of some hundred operations, not in reading
weights. Compiled, it is one call; on CUDA it is also recorded once and then replayed as a whole.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast, final

import torch
from torch import Tensor, nn

from wmtp.errors import DeviceError
from wmtp.model.decoding.row_cache import RowCache
from wmtp.runtime.device import RecordedStep, can_record

Found = TypeVar("Found")
Step = Callable[..., Found]
"""A function of a module, the cache that it adds to, and tensors ``[B, S, ...]``."""

_SHAPES_OF_A_STEP: Final = 64
"""Compiled at most, for all models of a process; later ones run as they are written."""


@final
class Steps:
    """Runs the steps of one decoder.

    Args:
        usual: positions of the longest step of a usual round, ``H``; those of twice as many are
            compiled, longer ones (a prompt is read once) run as they are written. 0 compiles none.
    """

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._recordings: dict[object, RecordedStep[Any]] = {}

    @property
    def are_compiled(self) -> bool:
        """Whether caches must keep their shapes."""
        return self._usual > 0

    def width(self, rows: int) -> int:
        """Of the step that runs so many rows: filled up to one width where that saves a shape."""
        return max(rows, self._usual)

    def run(self, step: Step[Found], module: nn.Module, cache: RowCache, *inputs: Tensor) -> Found:
        """What ``step(module, cache, *inputs)`` gives; on CUDA it stays good until the next run.

        Args:
            step: it reads and writes nothing but what it is given, so that it can be repeated.
            module: whose parameters it reads.
            cache: which it adds to.
            inputs: the second dimension is the number of positions.

        Raises:
            DeviceError: nothing can be compiled on this machine.
        """
        if inputs[0].shape[1] > 2 * self._usual or not cache.is_allocated:
            return step(module, cache, *inputs)
        compiled = _compiled(step)
        if not can_record(inputs[0].device):
            return cast(Found, compiled(module, cache, *inputs))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        # a cache that has grown has its memory elsewhere
        key = (step, id(module), cache.slots_BT.shape[1], *shapes)
        if key not in self._recordings:

            def on_tensors(*held: Tensor) -> Found:
                return cast(Found, compiled(module, cache, *held))

            self._recordings[key] = RecordedStep(on_tensors, inputs)
        return cast(Found, self._recordings[key](*inputs))


PLAIN_STEPS: Final = Steps(0)


@lru_cache
def _compiled(step: Step[Found]) -> Step[Found]:
    # each shape is compiled for itself: one that fits all would read sizes at run time
    made = torch.compile(step, dynamic=False)

    def run(*inputs: Any) -> Found:
        try:
            with torch._dynamo.config.patch(recompile_limit=_SHAPES_OF_A_STEP):
                return made(*inputs)
        except torch._inductor.exc.InductorError as error:  # such as: there is no C++ compiler
            raise DeviceError(
                f"torch.compile does not work here ({str(error).splitlines()[0]}). "
                "Decode without compiling."
            ) from error

    return run
