"""Rotary positions: each pair of a head's numbers turns by an angle that grows with position."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Llama3Scaling:
    """How Llama 3.1 stretches the slow rotations to a longer context (``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_length: int


def rotary_frequencies(head_dim: int, theta: float, scaling: Llama3Scaling | None = None) -> Tensor:
    """Angle per position of each of the ``head_dim / 2`` pairs, float32 radians.

        f[i] = theta ** (-2 i / head_dim)

    With ``scaling``, pairs whose wavelength exceeds ``original / low_freq_factor`` turn ``factor``
    times slower, those under ``original / high_freq_factor`` stay, and between the two they blend.

    Source:
        Su et al. 2021 (arXiv:2104.09864); Llama 3.1's reference code for the scaling.

    Example:
        >>> rotary_frequencies(4, 100.0)
        tensor([1.0000, 0.1000])
    """
    # float32 and int64 where transformers has them, so that the angles agree to the last bit.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    periods = scaling.original_max_seq_length / wavelengths  # turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((periods - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


class RotaryTable:
    """Cosines and sines of the positions, built once per device and grown when needed.

    Not a module and not a buffer: the table stays float32 when a model is cast to bf16, needs no
    care when parameters start on the meta device, and takes no room for positions never reached.
    """

    def __init__(
        self, head_dim: int, theta: float, scaling: Llama3Scaling | None, max_positions: int
    ) -> None:
        self._settings = (head_dim, theta, scaling)
        self._max_positions = max_positions
        self._table: tuple[Tensor, Tensor] | None = None

    def positions(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ``cos, sin`` of positions ``start .. stop - 1``, float32 ``[S, C / 2]``."""
        table = self._table
        if table is None or table[0].device != device or table[0].shape[0] < stop:
            table = self._table = self._build(stop, device)
        return table[0][start:stop], table[1][start:stop]

    def _build(self, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = max(stop, min(2 * stop, self._max_positions))
        # A table first asked for while decoding must still be good for training.
        with torch.inference_mode(False), torch.no_grad():
            frequencies = rotary_frequencies(*self._settings)
            angles = torch.arange(rows, dtype=torch.float32)[:, None] * frequencies
            return angles.cos().to(device), angles.sin().to(device)


def rotate(x_BNSC: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pair ``(i, i + C / 2)`` of each head by its position's angle, in float32."""
    cos, sin = rope
    first, second = x_BNSC.float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x_BNSC.dtype)
