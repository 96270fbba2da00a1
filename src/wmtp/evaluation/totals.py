"""Sums over targets, kept on the device and read back once."""

import math

import torch
from torch import Tensor

from wmtp.runtime.device import Device


class HeadTotals:
    """Cross-entropy and hits per head, over any number of batches.

    Sums are float64 where the device has it, so that neither order nor number of batches shows.
    """

    def __init__(self, horizon: int, device: Device) -> None:
        self.ce_H, self.correct_H, self.count_H = (device.zeros(horizon) for _ in range(3))

    def add(self, ce_BSH: Tensor, correct_BSH: Tensor, measured_BSH: Tensor) -> None:
        """Count the measured targets of a batch."""
        self.ce_H += (ce_BSH * measured_BSH).sum((0, 1), dtype=self.ce_H.dtype)
        self.correct_H += (correct_BSH & measured_BSH).sum((0, 1))
        self.count_H += measured_BSH.sum((0, 1))

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, as they stand."""
        return dict(vars(self))

    def figures(self) -> dict[str, float]:
        """``ce/head_k`` in nats and ``accuracy/head_k``; a head without targets is absent."""
        ce, correct, count = (total.tolist() for total in (self.ce_H, self.correct_H, self.count_H))
        row = {}
        for head, n in enumerate(count):
            if n:
                row[f"ce/head_{head}"] = ce[head] / n
                row[f"accuracy/head_{head}"] = correct[head] / n
        return row

    def mean_loss(self, head_scale: tuple[float, ...]) -> float | None:
        """The loss with all weights 1: mean cross-entropy, each head counted with its scale."""
        scale = torch.tensor(head_scale, dtype=self.ce_H.dtype, device=self.ce_H.device)
        total, count = (scale * self.ce_H).sum().item(), (scale * self.count_H).sum().item()
        return total / count if count else None


class TextTotals:
    """Nats of head 0 and UTF-8 bytes of its targets, special tokens left out.

    Args:
        bytes_V: bytes that each id stands for, on the device; 0 for special ones.
        device: where the sums are.
    """

    def __init__(self, bytes_V: Tensor, device: Device) -> None:
        self._bytes_V = bytes_V
        self._nats, self._bytes = device.zeros(), device.zeros()

    def add(self, ce_BSH: Tensor, targets_BSH: Tensor, measured_BSH: Tensor) -> None:
        """Count the measured targets of a batch."""
        measured_BS = measured_BSH[:, :, 0]
        bytes_BS = self._bytes_V[targets_BSH[:, :, 0].masked_fill(~measured_BS, 0)] * measured_BS
        self._nats += (ce_BSH[:, :, 0] * (bytes_BS > 0)).sum(dtype=self._nats.dtype)
        self._bytes += bytes_BS.sum()

    def tensors(self) -> list[Tensor]:
        """The sums, as they stand."""
        return [self._nats, self._bytes]

    def bits_per_byte(self) -> float | None:
        """Summed cross-entropy in bits per byte of text; None without text."""
        nats, text_bytes = self._nats.item(), self._bytes.item()
        return nats / math.log(2) / text_bytes if text_bytes else None


class WeightTotals:
    """Statistics of the weights of valid targets over one or more steps."""

    def __init__(self, horizon: int, device: Device) -> None:
        self.sum_H, self.count_H = (device.zeros(horizon) for _ in range(2))
        self.squares, self.w_log_w, self.kept = (device.zeros() for _ in range(3))

    def add(self, weights_BSH: Tensor, valid_BSH: Tensor) -> None:
        """Count the weights of a micro-batch; they are 0 where not valid."""
        self.sum_H += weights_BSH.sum((0, 1))
        self.count_H += valid_BSH.sum((0, 1))
        self.squares += weights_BSH.square().sum()
        self.w_log_w += torch.special.xlogy(weights_BSH, weights_BSH).sum()
        self.kept += (weights_BSH > 0).sum()

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, as they stand."""
        return dict(vars(self))

    def figures(self) -> dict[str, float]:
        """Mean, per-head mean, standard deviation, entropy of w / sum(w) in nats, share kept."""
        per_head, counts = self.sum_H.tolist(), self.count_H.tolist()
        total, count = sum(per_head), sum(counts)
        if not count or not total:
            return {}
        mean = total / count
        variance = max(0.0, self.squares.item() / count - mean * mean)
        row = {
            "weights/mean": mean,
            "weights/std": math.sqrt(variance),
            "weights/entropy": math.log(total) - self.w_log_w.item() / total,
            "weights/kept_fraction": self.kept.item() / count,
        }
        for head, (weight, n) in enumerate(zip(per_head, counts, strict=True)):
            if n:
                row[f"weights/head_{head}"] = weight / n
        return row
