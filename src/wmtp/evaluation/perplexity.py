"""Perplexity and bits per byte of plain text."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch

from wmtp.data.tokenizer import TextTokenizer
from wmtp.loss import Workspace, measure_ce
from wmtp.model.multi_token import MultiTokenModel
from wmtp.runtime.device import Device


@dataclass(frozen=True)
class TextFigures:
    """What a model made of some text.

    Attributes:
        documents: texts measured.
        tokens: tokens predicted. A text's first token is not, unless the tokenizer puts a
            beginning-of-text token before it.
        text_bytes: UTF-8 bytes of the tokens predicted.
        nats: summed cross-entropy.
        window: tokens per pass; windows follow each other, each starting from the last token of
            the one before, so that every token is predicted once, early ones with less context.
        each: tokens, bytes and nats of each document, for comparisons.
    """

    documents: int
    tokens: int
    text_bytes: int
    nats: float
    window: int
    each: tuple[tuple[int, int, float], ...] = ()

    @property
    def perplexity(self) -> float:
        """Exponential of the mean cross-entropy per token; depends on the tokenizer."""
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Summed cross-entropy in bits per byte of text; comparable across tokenizers."""
        return self.nats / math.log(2) / self.text_bytes


@torch.no_grad()
def measure_text(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    device: Device,
    workspace: Workspace,
    *,
    window: int,
    max_tokens: int | None = None,
) -> TextFigures | None:
    """Measure head 0 on every token of every text.

    Short texts share a row where the model keeps them apart: one by one, reviews of 80 bytes took
    a model of four layers twice the processor time.

    Args:
        texts: documents, each read on its own.
        window: tokens per pass, at most the model's ``max_seq_length``.
        max_tokens: read no more than this many tokens of each text.

    Returns:
        The figures, or None if no text has anything to predict.
    """
    was_training = model.training
    model.eval()
    read: list[tuple[int, int]] = []
    nats: list[float] = []

    def pieces() -> Iterator[_Piece]:
        before = len(tokenizer.bos_ids)
        for text in texts:
            ids = [*tokenizer.bos_ids, *tokenizer.encode(text)][:max_tokens]
            if len(ids) < 2:
                continue
            text_bytes = len(tokenizer.decode(ids[max(1, before) :]).encode())
            read.append((len(ids) - 1, text_bytes))
            nats.append(0.0)
            for start in range(0, len(ids) - 1, window):
                yield _Piece(len(read) - 1, ids[start : start + window + 1])

    for row in _rows(pieces(), min(window, model.trunk.longest_packed_row)):
        found = _measure_row(model, row, device, workspace)
        for piece, piece_nats in zip(row, found, strict=True):
            nats[piece.document] += piece_nats
    model.train(was_training)
    each = tuple((*one, its_nats) for one, its_nats in zip(read, nats, strict=True))
    tokens, total_bytes = sum(one[0] for one in each), sum(one[1] for one in each)
    if not tokens or not total_bytes:
        return None
    return TextFigures(len(each), tokens, total_bytes, math.fsum(nats), window, each)


@dataclass(frozen=True)
class _Piece:
    """A window of a document: the token before it, and those to predict."""

    document: int
    ids: list[int]

    @property
    def predicted(self) -> int:
        return len(self.ids) - 1


def _rows(pieces: Iterable[_Piece], room: int) -> Iterator[list[_Piece]]:
    """Neighbours that one pass can take: as many as fit, or one alone."""
    row: list[_Piece] = []
    for piece in pieces:
        if row and sum(one.predicted for one in row) + piece.predicted > room:
            yield row
            row = []
        row.append(piece)
    if row:
        yield row


def _measure_row(
    model: MultiTokenModel, row: list[_Piece], device: Device, workspace: Workspace
) -> list[float]:
    """Nats of each piece; pieces of one row do not see each other."""
    inputs_S = [token for piece in row for token in piece.ids[:-1]]
    targets_S = [token for piece in row for token in piece.ids[1:]]
    lengths = torch.tensor([piece.predicted for piece in row])
    tokens_2S = torch.tensor([inputs_S, targets_S], device=device.torch_device)
    inputs_BS, targets_BSH = tokens_2S[:1], tokens_2S[1][None, :, None]
    documents_S = torch.arange(len(row)).repeat_interleave(lengths).to(device.torch_device)
    alone = len(row) == 1
    with device.autocast():
        hidden_BSD = model.next_token_hidden(inputs_BS, None if alone else documents_S[None])
    valid_BSH = torch.ones_like(targets_BSH, dtype=torch.bool)
    ce_BSH, _ = measure_ce((hidden_BSD,), model.unembeddings[:1], targets_BSH, valid_BSH, workspace)
    nats = torch.zeros(len(row), dtype=device.sum_dtype, device=device.torch_device)
    nats.index_add_(0, documents_S, ce_BSH[0, :, 0].to(device.sum_dtype))
    return cast(list[float], nats.tolist())
