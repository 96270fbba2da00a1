"""Perplexity and bits per byte of plain text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

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

    Args:
        texts: documents, each read on its own.
        window: tokens per pass, at most the model's ``max_seq_length``.
        max_tokens: read no more than this many tokens of each text.

    Returns:
        The figures, or None if no text has anything to predict.
    """
    was_training = model.training
    model.eval()
    each: list[tuple[int, int, float]] = []
    for text in texts:
        before = len(tokenizer.bos_ids)
        ids = [*tokenizer.bos_ids, *tokenizer.encode(text)][:max_tokens]
        if len(ids) < 2:
            continue
        text_bytes = len(tokenizer.decode(ids[max(1, before) :]).encode())
        nats = 0.0
        for start in range(0, len(ids) - 1, window):
            part = torch.tensor(ids[start : start + window + 1], device=device.torch_device)
            inputs_BS, targets_BSH = part[None, :-1], part[None, 1:, None]
            with device.autocast():
                hidden_BSD = model.next_token_hidden(inputs_BS)
            valid_BSH = torch.ones_like(targets_BSH, dtype=torch.bool)
            ce_BSH, _ = measure_ce(
                (hidden_BSD,), model.unembeddings[:1], targets_BSH, valid_BSH, workspace
            )
            nats += ce_BSH.sum(dtype=device.sum_dtype).item()
        each.append((len(ids) - 1, text_bytes, nats))
    model.train(was_training)
    tokens, total_bytes = sum(one[0] for one in each), sum(one[1] for one in each)
    if not tokens or not total_bytes:
        return None
    total = math.fsum(one[2] for one in each)
    return TextFigures(len(each), tokens, total_bytes, total, window, tuple(each))
