"""Memory for a few hundred rows of logits, and how the device likes to fill it."""

import torch
from torch import Tensor

from wmtp.loss.pieces import MEBIBYTE, rounded_up
from wmtp.loss.softmax_step import kernel_step, softmax_minus_one_hot

ALIGNMENT = 64
"""16-bit numbers in the 128 bytes that a GPU reads at a time."""


class Workspace:
    """Scratch memory for logits, kept between micro-batches so that it is paged in once.

    Args:
        limit_bytes: the most that logits may take, whatever B, S and H are.
        chunk_rows: rows of logits handled at a time; 256-512 suits CPU caches.
        exact_counts: reading a count back from the device is free (CPU), so that rows which need
            no work are left out. Elsewhere shapes stay fixed and such rows get weight 0.
        product_dtype: of logits and matrix products, whose sums stay float32. None means at least
            float32. A 16-bit one needs a copy of a float32 unembedding while the loss runs.
        shape_parts: counts that vary from batch to batch are rounded up to so many parts of all
            targets, because each new shape costs the device (MPS) a compilation; None leaves them.
        kernel: the softmax step is one Triton kernel; only where Triton compiles for the device.
    """

    def __init__(
        self,
        limit_bytes: int = 256 * MEBIBYTE,
        chunk_rows: int = 512,
        *,
        exact_counts: bool = True,
        product_dtype: torch.dtype | None = None,
        shape_parts: int | None = None,
        kernel: bool = False,
    ) -> None:
        if limit_bytes < 1 or chunk_rows < 1:
            raise ValueError(f"limit_bytes={limit_bytes}, chunk_rows={chunk_rows} must be positive")
        self.limit_bytes = limit_bytes
        self.chunk_rows = chunk_rows
        self.exact_counts = exact_counts
        self.product_dtype = product_dtype
        self.shape_parts = shape_parts
        self.softmax_step = kernel_step() if kernel else softmax_minus_one_hot
        self._buffer: Tensor | None = None

    def rows_that_fit(self, vocab_size: int, itemsize: int) -> int:
        """How many rows of logits the limit allows, at least one."""
        return max(1, self.limit_bytes // (_row_stride(vocab_size, itemsize) * itemsize))

    def rows_per_chunk(self, vocab_size: int, itemsize: int) -> int:
        """Rows handled by one matrix product."""
        return min(self.chunk_rows, self.rows_that_fit(vocab_size, itemsize))

    def rounded(self, count: int, whole: int) -> int:
        """A count that varies, as one of few; ``whole`` is the most that it can be."""
        return rounded_up(count, whole, self.shape_parts)

    def logits(self, rows: int, like_VD: Tensor) -> Tensor:
        """Return uninitialized ``[rows, V]`` scratch of the dtype and device of ``like_VD``."""
        stride = _row_stride(len(like_VD), like_VD.element_size())
        count = rows * stride
        held = self._buffer
        if (
            held is None
            or held.numel() < count
            or held.dtype != like_VD.dtype
            or held.device != like_VD.device
        ):
            self._buffer = held = None  # freed before the larger one is asked for
            self._buffer = held = like_VD.new_empty(count)
        return held[:count].view(rows, stride)[:, : len(like_VD)]


def _row_stride(vocab_size: int, itemsize: int) -> int:
    """Numbers from one row of logits to the next; tensor cores want 16-bit ones aligned."""
    return -(-vocab_size // ALIGNMENT) * ALIGNMENT if itemsize == 2 else vocab_size
