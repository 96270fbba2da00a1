"""Softmax attention of grouped heads, in one piece or in tiles of query rows.

Most devices have a fused kernel (``F.scaled_dot_product_attention``) that needs no memory for the
scores of all pairs of positions. Where there is none, torch keeps two tensors of ``B * N * S * T``
numbers per layer for the backward pass; ``tiled_attention`` keeps none and makes one tile of
scores at a time, forward and backward. ``runtime.device`` says which a device needs.

``B`` batch, ``S`` query rows, ``T`` key rows, ``N G C`` heads, key-value groups, width of a head,
``P`` heads of a group, ``R = P * S`` query rows of a group.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TILE_BYTES: Final = 64 * 1024**2
"""Most memory for the scores of one tile, unless ``FEWEST_ROWS`` rows take more."""

MOST_ROWS: Final = 128
"""Query rows of a tile: causal tiles skip the future, so that smaller ones skip more of it."""

FEWEST_ROWS: Final = 32
"""Below, products are too small to keep a device busy."""


def attend(
    query_BNSC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    mask: Tensor | None,
    *,
    causal: bool = False,
    tiled: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of grouped heads: the one place where positions meet.

    Args:
        query_BNSC: the new positions' queries.
        key_BGTC: keys of cached and new positions; each group serves ``N / G`` heads.
        value_BGTC: values beside the keys, of the same width as the keys.
        mask: bool, True where a query may look, broadcast to ``[B, N, S, T]``. None means causal,
            or, for a single new position, everything.
        causal: the mask lets no row ``s`` look beyond row ``s`` of the keys, so that tiles need not
            either; it says nothing that the mask does not.
        tiled: this device has no fused kernel that is lean with memory.
        scale: factor on the scores, ``C ** -0.5`` unless told.

    Returns:
        ``[B, N, S, C]``.
    """
    positions = query_BNSC.shape[2]
    inputs = (query_BNSC, key_BGTC, value_BGTC)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    if tiled and (learns or positions > MOST_ROWS):
        causal = causal or (mask is None and positions > 1)
        return tiled_attention(*inputs, mask, causal=causal, scale=scale)
    # The groups are not expanded: on CPU this is as fast in training and twice as fast in decoding.
    return F.scaled_dot_product_attention(
        *inputs,
        attn_mask=mask,
        is_causal=mask is None and positions > 1,
        scale=scale,
        enable_gqa=query_BNSC.shape[1] != key_BGTC.shape[1],
    )


def tiled_attention(
    query_BNSC: Tensor,
    key_BGTC: Tensor,
    value_BGTC: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float | None = None,
    tile_rows: int | None = None,
) -> Tensor:
    """Attention that never holds the scores of all pairs of positions, with gradients.

    Forward keeps the logarithm of each row's sum, from which backward makes a tile's
    probabilities anew. Sums and products are float32 for 16-bit inputs, as in torch's own path
    without a fused kernel, and float64 for float64.

    Args:
        query_BNSC: queries, ``N`` a multiple of ``G``.
        key_BGTC: keys.
        value_BGTC: values.
        mask: bool, True where a query may look, broadcast to ``[B, N, S, T]``; None hides nothing.
            A row that may look nowhere gives zeros.
        causal: row ``s`` may not look beyond row ``s`` of the keys, whatever the mask says; the
            tiles leave out what lies there.
        scale: factor on the scores, ``C ** -0.5`` unless told.
        tile_rows: query rows of a tile; chosen by memory unless told.

    Returns:
        ``[B, N, S, C]`` in the queries' dtype, or in autocast's where that is on.

    Raises:
        ValueError: the heads cannot be shared out to the groups, or the mask's numbers are not
            bool.

    Source:
        Dao 2023 (arXiv:2307.08691), the backward pass of algorithm 2, a tile of all keys at once.
    """
    heads, groups = query_BNSC.shape[1], key_BGTC.shape[1]
    if heads % groups:
        raise ValueError(f"{heads} heads cannot share {groups} groups")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    kind = query_BNSC.device.type
    if torch.is_autocast_enabled(kind):  # which does not look into a function of our own
        dtype = torch.get_autocast_dtype(kind)
        query_BNSC, key_BGTC, value_BGTC = (
            tensor.to(dtype) for tensor in (query_BNSC, key_BGTC, value_BGTC)
        )
    rows = tile_rows or rows_of_tile(query_BNSC.shape[0] * heads, key_BGTC.shape[2])
    scale = query_BNSC.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = _TiledAttention.apply(  # type: ignore[no-untyped-call]
        query_BNSC, key_BGTC, value_BGTC, mask, causal, scale, rows
    )
    return output


def rows_of_tile(batch_times_heads: int, keys: int) -> int:
    """As many query rows, a power of 2, as ``TILE_BYTES`` hold scores of.

    Example:
        >>> rows_of_tile(4 * 16, 2048)
        128
    """
    fitting = TILE_BYTES // (torch.float32.itemsize * batch_times_heads * keys)
    power = 1 << max(0, fitting.bit_length() - 1)
    return max(FEWEST_ROWS, min(MOST_ROWS, power))


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BNSC: Tensor,
        key_BGTC: Tensor,
        value_BGTC: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
        rows: int,
    ) -> Tensor:
        outputs, logsums = [], []
        with torch.autocast(query_BNSC.device.type, enabled=False):
            tiles = _Tiles(query_BNSC, key_BGTC, mask, causal, scale, rows)
            value_BGTC_wide = tiles.wide(value_BGTC)
            for start, stop, seen in tiles:
                scores_BGRT = tiles.scores(start, stop, seen)
                # of a row that may look nowhere every score is -inf, and every exponential 0
                most_BGR1 = scores_BGRT.amax(-1, keepdim=True).clamp_min(_lowest(scores_BGRT))
                shares_BGRT = scores_BGRT.sub_(most_BGR1).exp_()
                sum_BGR1 = shares_BGRT.sum(-1, keepdim=True).clamp_min(_smallest(scores_BGRT))
                mixed_BGRC = (shares_BGRT @ value_BGTC_wide[:, :, :seen]) / sum_BGR1
                outputs.append(tiles.by_heads(mixed_BGRC).to(query_BNSC.dtype))
                logsums.append(most_BGR1 + sum_BGR1.log())
        output_BNSC = torch.cat(outputs, dim=2)
        ctx.save_for_backward(query_BNSC, key_BGTC, value_BGTC, mask, output_BNSC, *logsums)
        ctx.tiling = (causal, scale, rows)
        return output_BNSC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNSC: Tensor) -> tuple[Tensor | None, ...]:
        query_BNSC, key_BGTC, value_BGTC, mask, output_BNSC, *logsums = ctx.saved_tensors
        with torch.autocast(query_BNSC.device.type, enabled=False):
            tiles = _Tiles(query_BNSC, key_BGTC, mask, *ctx.tiling)
            value_BGTC_wide = tiles.wide(value_BGTC)
            grad_queries, grad_keys, grad_values = [], _Sums(), _Sums()
            # from the last rows to the first: the keys that a tile sees are then a part of those
            # that the tile before it saw, and what lies beyond is finished
            for (start, stop, seen), logsum_BGR1 in reversed(
                list(zip(tiles, logsums, strict=True))
            ):
                query_BGRC = tiles.queries(start, stop)
                grad_BGRC = tiles.by_groups(tiles.wide(grad_BNSC[:, :, start:stop]))
                output_BGRC = tiles.by_groups(tiles.wide(output_BNSC[:, :, start:stop]))
                shares_BGRT = tiles.scores(start, stop, seen).sub_(logsum_BGR1).exp_()
                grad_values.add((shares_BGRT.transpose(-1, -2) @ grad_BGRC), seen)
                towards_BGR1 = (grad_BGRC * output_BGRC).sum(-1, keepdim=True)
                grad_scores_BGRT = grad_BGRC @ value_BGTC_wide[:, :, :seen].transpose(-1, -2)
                grad_scores_BGRT = grad_scores_BGRT.sub_(towards_BGR1).mul_(shares_BGRT)
                grad_keys.add(grad_scores_BGRT.transpose(-1, -2) @ query_BGRC, seen)
                grad_query_BGRC = grad_scores_BGRT @ tiles.keys_BGTC[:, :, :seen]
                grad_queries.append(tiles.by_heads(grad_query_BGRC * tiles.scale))
        grad_query_BNSC = torch.cat(grad_queries[::-1], dim=2).to(query_BNSC.dtype)
        keys = key_BGTC.shape[2]
        grad_key_BGTC = grad_keys.total(keys).to(key_BGTC.dtype)
        grad_value_BGTC = grad_values.total(keys).to(value_BGTC.dtype)
        return grad_query_BNSC, grad_key_BGTC, grad_value_BGTC, None, None, None, None


class _Tiles:
    """The tiles of one attention: pairs of some query rows and the keys that they may see.

    Heads of a group are rows of one product with the group's keys. So no key is repeated, and none
    is a broadcast operand, with which products on MPS have gone wrong.

    Attributes:
        keys_BGTC: in the dtype of the sums.
        scale: of the scores; ``queries`` have it already.
    """

    def __init__(
        self,
        query_BNSC: Tensor,
        key_BGTC: Tensor,
        mask: Tensor | None,
        causal: bool,
        scale: float,
        rows: int,
    ) -> None:
        self._groups = key_BGTC.shape[1]
        self._query_BNSC, self._causal, self._rows = query_BNSC, causal, rows
        self._mask = None if mask is None else self._mask_by_groups(mask)
        self._sum_dtype = torch.promote_types(query_BNSC.dtype, torch.float32)
        self.keys_BGTC, self.scale = self.wide(key_BGTC), scale

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """First query row, the one after the last, and how many keys they see at most."""
        rows, keys = self._query_BNSC.shape[2], self.keys_BGTC.shape[2]
        for start in range(0, rows, self._rows):
            stop = min(start + self._rows, rows)
            yield start, stop, min(stop, keys) if self._causal else keys

    def wide(self, tensor: Tensor) -> Tensor:
        """In the dtype of the sums."""
        return tensor.to(self._sum_dtype)

    def queries(self, start: int, stop: int) -> Tensor:
        """Scaled queries of some rows, ``[B, G, R, C]``."""
        return self.by_groups(self.wide(self._query_BNSC[:, :, start:stop]) * self.scale)

    def scores(self, start: int, stop: int, seen: int) -> Tensor:
        """Scores of some rows with the first ``seen`` keys, -inf where they may not look."""
        scores_BGRT = self.queries(start, stop) @ self.keys_BGTC[:, :, :seen].transpose(-1, -2)
        hidden = self._hidden(start, stop, seen)
        if hidden is None:
            return scores_BGRT
        batch, groups, _, _ = scores_BGRT.shape
        scores_BGPST = scores_BGRT.view(batch, groups, -1, stop - start, seen)
        return scores_BGPST.masked_fill_(hidden, -torch.inf).flatten(2, 3)

    def _hidden(self, start: int, stop: int, seen: int) -> Tensor | None:
        """True where rows may not look, broadcast to ``[B, G, P, S, T]``."""
        hidden = None
        if self._mask is not None:
            row = slice(start, stop) if self._mask.shape[3] > 1 else slice(None)
            hidden = ~self._mask[..., row, : seen if self._mask.shape[4] > 1 else None]
        if self._causal:
            device = self.keys_BGTC.device
            row_S1 = torch.arange(start, stop, device=device).unsqueeze(1)
            future_ST = torch.arange(seen, device=device) > row_S1
            hidden = future_ST if hidden is None else hidden | future_ST
        return hidden

    def by_groups(self, tensor_BNSC: Tensor) -> Tensor:
        """Rows of all heads of a group below each other, ``[B, G, R, C]``."""
        batch, _, _, width = tensor_BNSC.shape
        return tensor_BNSC.reshape(batch, self._groups, -1, width)

    def by_heads(self, tensor_BGRC: Tensor) -> Tensor:
        """The way back: ``[B, N, S, C]``."""
        batch, _, _, width = tensor_BGRC.shape
        return tensor_BGRC.reshape(batch, self._query_BNSC.shape[1], -1, width)

    def _mask_by_groups(self, mask: Tensor) -> Tensor:
        """The mask with five dimensions, for ``[B, G, P, S, T]``."""
        mask_BNST = mask[(None,) * (4 - mask.dim())]
        batch, heads, rows, keys = mask_BNST.shape
        return mask_BNST.reshape(batch, 1 if heads == 1 else self._groups, -1, rows, keys)


class _Sums:
    """Sums over tiles, each of which has a part for fewer of the first keys than the one before."""

    def __init__(self) -> None:
        self._growing: Tensor | None = None
        self._finished: list[Tensor] = []

    def add(self, part_BGTC: Tensor, seen: int) -> None:
        """Add a tile's part, for the first ``seen`` keys."""
        if self._growing is not None:
            beyond = self._growing[:, :, seen:]
            if beyond.shape[2]:
                self._finished.append(beyond.clone())  # a view would hold on to all the rest
            # nothing is written into a part of a tensor, which has gone wrong on MPS
            part_BGTC = part_BGTC.add_(self._growing[:, :, :seen])
        self._growing = part_BGTC

    def total(self, keys: int) -> Tensor:
        """The sums of all ``keys``; of those that no tile saw, zeros."""
        assert self._growing is not None
        total = torch.cat((self._growing, *self._finished[::-1]), dim=2)
        return F.pad(total, (0, 0, 0, keys - total.shape[2]))


def _lowest(like: Tensor) -> float:
    return float(torch.finfo(like.dtype).min)


def _smallest(like: Tensor) -> float:
    return float(torch.finfo(like.dtype).tiny)
