"""``wmtp bench``, in order: each case in a process of its own, then one report of all."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch

from wmtp import __version__
from wmtp.bench.cases import (
    Effort,
    Place,
    measure_decoding,
    measure_leak,
    measure_loss,
    measure_training,
)
from wmtp.bench.figures import Figure, LeftOut, Report
from wmtp.errors import DeviceError
from wmtp.runtime.device import Kind, Precision, available_kinds, choose_device
from wmtp.runtime.machine import GIBIBYTE, this_machine

Measure = Callable[[Place, Effort], list[Figure]]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class Case:
    """What is measured where."""

    measure: Measure
    place: Place
    name: str


def cases_of(kinds: Sequence[Kind]) -> Iterator[Case | LeftOut]:
    """What this machine has to be measured, and what of it is left out."""
    for kind in kinds:
        for precision in PRECISIONS:
            name = f"training, {kind} {precision}"
            try:
                device = choose_device(kind, precision)
            except DeviceError:
                yield LeftOut(what=name, why="this machine lacks the precision")
                continue
            yield Case(measure_training, Place(kind, precision), f"{name} eager")
            compiled = f"{name} compiled"
            if not device.compile_is_trusted:
                why = "compiled training is not trusted on this device"
                yield LeftOut(what=compiled, why=why)
            elif kind == "cpu":
                yield LeftOut(what=compiled, why="a CPU takes minutes to compile it")
            else:
                yield Case(measure_training, Place(kind, precision, "compiled"), compiled)
        yield Case(measure_loss, Place(kind), f"loss, {kind}")
        yield Case(measure_decoding, Place(kind), f"decoding, {kind}")
        yield Case(measure_leak, Place(kind), f"growth, {kind}")


def run_bench(
    say: Callable[[str], None],
    effort: Effort | None = None,
    kinds: Sequence[Kind] | None = None,
) -> Report:
    """Measure everything that this machine has.

    Args:
        say: takes a line about what is being measured.
        effort: how much; None takes about three minutes on a laptop.
        kinds: devices; None takes all there are.
    """
    figures, left_out = [], []
    for case in cases_of(kinds or available_kinds()):
        if isinstance(case, LeftOut):
            left_out.append(case)
            continue
        say(case.name)
        try:
            figures += in_own_process(case, effort or Effort())
        except Exception as error:  # one case that cannot be measured must not cost the others
            kind = "the process ended" if isinstance(error, BrokenProcessPool) else ""
            say(f"{case.name} failed: {error}")
            left_out.append(LeftOut(what=case.name, why=f"failed: {kind or type(error).__name__}"))
    machine = this_machine()
    return Report(
        wmtp=__version__,
        torch=torch.__version__,
        python=machine.python,
        system=machine.system,
        chip=machine.chip,
        cores=machine.cores,
        memory_gibibytes=round(machine.memory_bytes / GIBIBYTE, 1),
        devices={kind: choose_device(kind, "fp32").name for kind in available_kinds()},
        figures=figures,
        left_out=left_out,
    )


def in_own_process(case: Case, effort: Effort) -> list[Figure]:
    """Measure in a new process, which has this one's settings and nothing of its memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(case.measure, case.place, effort).result()
