"""What happened between two logged rows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from wmtp.distributed.ranks import Ranks
from wmtp.evaluation.totals import HeadTotals, WeightTotals
from wmtp.loss import LossOutput
from wmtp.runtime.device import Device


@final
class StepSums:
    """Sums over the micro-batches of one step, or of several steps."""

    def __init__(self, horizon: int, device: Device) -> None:
        self.heads = HeadTotals(horizon, device)
        self.weights = WeightTotals(horizon, device)
        self.loss, self.value_loss, self.has_values = (device.zeros() for _ in range(3))

    def add(self, output: LossOutput, valid_BSH: Tensor, value_loss: Tensor | None) -> None:
        """Count a micro-batch."""
        self.heads.add(output.ce_BSH, output.correct_BSH, output.measured_BSH)
        self.weights.add(output.weights_BSH, valid_BSH)
        self.loss += output.loss.detach()
        if value_loss is not None:
            self.value_loss += value_loss.detach()
            self.has_values += 1

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, as they stand."""
        return {
            "loss": self.loss,
            "value_loss": self.value_loss,
            "has_values": self.has_values,
            **{f"heads.{name}": sums for name, sums in self.heads.tensors().items()},
            **{f"weights.{name}": sums for name, sums in self.weights.tensors().items()},
        }


@final
class Window:
    """Sums over the steps since the last logged row, kept on the device until it is written.

    Its sums go into a checkpoint, so that a row logged after a resumed run is the row that a run
    without a stop would have logged. Times do not.
    """

    def __init__(self, horizon: int, device: Device) -> None:
        self._horizon = horizon
        self._device = device
        self._clear()
        self.start_clock()

    def add(self, output: LossOutput, valid_BSH: Tensor, value_loss: Tensor | None = None) -> None:
        """Count a micro-batch, and what a value head learned from, if there is one."""
        self._step.add(output, valid_BSH, value_loss)

    def forget_step(self) -> None:
        """Leave out the micro-batches since the last step: it is to be done again."""
        self._step = StepSums(self._horizon, self._device)

    def step_is_finite(self) -> Tensor:
        """Whether the losses of the step so far are numbers: a bool scalar on the device."""
        return self._step.loss.isfinite()

    def end_step(self, gradient_norm: Tensor, tokens: int, left_out: Tensor | None = None) -> None:
        """Count an optimizer step.

        Args:
            gradient_norm: of the step, before clipping.
            tokens: positions of the step, over all ranks.
            left_out: bool scalar on the device, True if its figures are not numbers and are not
                to be counted; None counts it.
        """
        one = torch.ones_like(self._steps)
        step = {**self._step.tensors(), "norm": gradient_norm.detach(), "steps": one}
        for name, total in self.tensors().items():
            fresh = step[name]
            total += fresh if left_out is None else torch.where(left_out, 0, fresh)
        self.forget_step()
        self._tokens += tokens

    def gather_on_first(self, ranks: Ranks) -> None:
        """Let the first rank hold the sums of all; norm and steps are the same on each."""
        if not ranks.is_first:
            self._norm.zero_()
            self._steps.zero_()
        ranks.gather_on_first(self.tensors())

    def close(self) -> dict[str, float]:
        """Return the row's figures, averaged over the window's steps, and start a new window.

        Figures of a window without a step that counts are absent.
        """
        steps = self._steps.item()
        seconds = time.perf_counter() - self._started
        row: dict[str, float] = {
            "tokens_per_second": self._tokens / seconds,
            "memory/peak_bytes": self._device.peak_memory_bytes(),
        }
        if steps:
            row = {
                "loss": self._total.loss.item() / steps,
                "gradient_norm": self._norm.item() / steps,
                **self._total.heads.figures(),
                **self._total.weights.figures(),
                **row,
            }
            if self._total.has_values.item():
                row["value/loss"] = self._total.value_loss.item() / steps
        self._clear()
        self.start_clock()
        return row

    def start_clock(self) -> None:
        """Count time, and the tokens it is for, from now on."""
        self._started = time.perf_counter()
        self._tokens = 0

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leave the time of the block out of ``tokens_per_second``."""
        self._device.synchronize()
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before

    def tensors(self) -> dict[str, Tensor]:
        """The sums, for a checkpoint."""
        return {**self._total.tensors(), "norm": self._norm, "steps": self._steps}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        for name, sums in self.tensors().items():
            sums.copy_(tensors[name])

    def _clear(self) -> None:
        self._total = StepSums(self._horizon, self._device)
        self._norm, self._steps = (self._device.zeros() for _ in range(2))
        self.forget_step()
