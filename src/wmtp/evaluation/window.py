"""What happened between two logged rows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from torch import Tensor

from wmtp.evaluation.totals import HeadTotals, WeightTotals
from wmtp.loss import LossOutput
from wmtp.runtime.device import Device


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
        self._heads.add(output.ce_BSH, output.correct_BSH, output.measured_BSH)
        self._weights.add(output.weights_BSH, valid_BSH)
        self._loss += output.loss.detach()
        if value_loss is not None:
            self._value_loss += value_loss.detach()
            self._has_values += 1

    def end_step(self, gradient_norm: Tensor, tokens: int) -> None:
        """Count an optimizer step."""
        self._steps += 1
        self._norm += gradient_norm
        self._tokens += tokens

    def close(self) -> dict[str, float]:
        """Return the row's figures, averaged over the window's steps, and start a new window."""
        steps = self._steps.item()
        seconds = time.perf_counter() - self._started
        row = {
            "loss": self._loss.item() / steps,
            "gradient_norm": self._norm.item() / steps,
            **self._heads.figures(),
            **self._weights.figures(),
            "tokens_per_second": self._tokens / seconds,
            "memory/peak_bytes": self._device.peak_memory_bytes(),
        }
        if self._has_values.item():
            row["value/loss"] = self._value_loss.item() / steps
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
        return {
            "loss": self._loss,
            "norm": self._norm,
            "steps": self._steps,
            "value_loss": self._value_loss,
            "has_values": self._has_values,
            **{f"heads.{name}": sums for name, sums in vars(self._heads).items()},
            **{f"weights.{name}": sums for name, sums in vars(self._weights).items()},
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""
        for name, sums in self.tensors().items():
            sums.copy_(tensors[name])

    def _clear(self) -> None:
        self._heads = HeadTotals(self._horizon, self._device)
        self._weights = WeightTotals(self._horizon, self._device)
        self._loss, self._norm, self._steps = (self._device.zeros() for _ in range(3))
        self._value_loss, self._has_values = (self._device.zeros() for _ in range(2))
