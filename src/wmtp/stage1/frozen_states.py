"""What a frozen trunk makes of single documents, computed once."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from wmtp.data.batches import gather_rows
from wmtp.data.rows import Rows
from wmtp.job import Job


@final
class FrozenStates:
    """Hidden states of documents, kept as far as memory allows: the trunk does not change.

    A document is always read alone, so that what it gives depends on nothing else: not on the
    batch it is drawn into, nor on what was read before a run was resumed.

    Args:
        job: the trunk, in evaluation mode.
        rows: the documents, one a row.
        limit_bytes: most memory for whole documents; states of their ends alone are always kept.
    """

    def __init__(self, job: Job, rows: Rows, limit_bytes: int) -> None:
        self._job, self._rows = job, rows
        self._room = limit_bytes
        self._whole: dict[int, Tensor] = {}
        self._ends: dict[int, Tensor | None] = {}

    @property
    def nothing_D(self) -> Tensor:
        """A state of zeros."""
        width = self._job.model.trunk_shape.hidden_size
        return torch.zeros(width, device=self._job.device.torch_device)

    def all(self, document: int) -> Tensor:
        """The state at each position, float32 ``[T, D]``; a device may want more than there are."""
        kept = self._whole.get(document)
        if kept is not None:
            return kept
        states_TD = self._compute(document)
        size = states_TD.numel() * states_TD.element_size()
        if size <= self._room:
            self._room -= size
            self._whole[document] = states_TD
        return states_TD

    def end(self, document: int) -> Tensor | None:
        """The state before the last wanted token, ``[D]``; None if the row does not reach it."""
        if document not in self._ends:
            batch = gather_rows(self._rows, np.array([document]), horizon=1)
            assert batch.last_BSH is not None
            places = (batch.last_BSH & batch.valid_BSH)[0, :, 0].nonzero().flatten()
            self._ends[document] = (
                self.all(document)[int(places[0])].clone() if len(places) else None
            )
        return self._ends[document]

    @torch.no_grad()
    def _compute(self, document: int) -> Tensor:
        row_B = np.array([document])
        length = int((self._rows.stops(row_B) - self._rows.starts(row_B))[0])
        length = self._job.device.rounded_length(length, self._rows.max_length)
        batch = gather_rows(self._rows, row_B, horizon=1)
        tokens_1T = batch.tokens_BS[:, :length].to(self._job.device.torch_device)
        with self._job.device.autocast():
            return self._job.model.next_token_hidden(tokens_1T)[0].float()
