"""What wmtp itself computes, for an engine's answers to be held against."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.model.generate import generate_many
from wmtp.model.multi_token import MultiTokenModel
from wmtp.verify.check import Check
from wmtp.verify.prompts import strings_to_tokenize

LEAST_PROMPT = 1

LIMITS_AS_SERVED: Final = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of an engine that rounds and computes in 16 bits, against the unrounded model in float32."""


@dataclass(frozen=True)
class Ours:
    """A model with prompts and how it continues them.

    Attributes:
        model: float32, its numbers rounded as the export's are.
        tokenizer: the model's.
        prompts: ids of each prompt, with what the tokenizer puts in front.
        texts: each prompt with its greedy continuation.
        new_tokens: how many were added.
        unrounded: logits ``[S, V]`` of each prompt before the model was rounded.
    """

    model: MultiTokenModel
    tokenizer: TextTokenizer
    prompts: list[list[int]]
    texts: list[list[int]]
    new_tokens: int
    unrounded: list[Tensor]


def prompt_ids(
    model: MultiTokenModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    new_tokens: int,
    least: int = LEAST_PROMPT,
) -> list[list[int]]:
    """Tokenize prompts as ``wmtp generate`` does.

    Args:
        model: whose context they must fit.
        tokenizer: the model's.
        prompts: at least one.
        new_tokens: that are to be added to each.
        least: tokens that the engine needs to begin with.

    Raises:
        DataError: there is none, or one is too short, too long, or has ids unknown to the model.
    """
    if not prompts:
        raise DataError("there is no prompt. Give at least one line with --prompts.")
    found = [[*tokenizer.bos_ids, *tokenizer.encode(prompt)] for prompt in prompts]
    room = model.trunk_shape.max_seq_length - new_tokens - model.horizon
    for prompt, ids in zip(prompts, found, strict=True):
        shown = prompt[:40]
        if len(ids) < least:
            raise DataError(
                f"prompt {shown!r} has {len(ids)} tokens, and at least {least} are needed. Make it "
                "longer."
            )
        if len(ids) > room:
            raise DataError(
                f"prompt {shown!r} has {len(ids)} tokens; with {new_tokens} new ones the model's "
                f"context of {model.trunk_shape.max_seq_length} has room for {max(0, room)}. "
                "Shorten it, or lower --new-tokens."
            )
        if max(ids) >= model.trunk_shape.vocab_size:
            raise DataError(
                f"prompt {shown!r} has the token id {max(ids)}, but the model knows 0 to "
                f"{model.trunk_shape.vocab_size - 1}: the tokenizer is another model's."
            )
    return found


@torch.no_grad()
def trunk_logits(model: MultiTokenModel, ids: Sequence[int]) -> Tensor:
    """Logits ``[S, V]`` of the trunk at every position of one text."""
    tokens_BS = torch.tensor([list(ids)])
    return model.unembed(model.next_token_hidden(tokens_BS))[0]


def greedy_texts(
    model: MultiTokenModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[list[int]]:
    """Continue each prompt without drafts and without a stop."""
    texts, _ = generate_many(model, prompts, max_new_tokens=new_tokens)
    return [text.ids for text in texts]


def logits_difference(ours_SV: Tensor, theirs_SV: Tensor) -> float:
    """Largest difference, in units of our largest logit where that is above 1.

    Float32 keeps seven digits of a number, whatever its size: a limit without a unit would ask
    more of a model with large logits.

    Example:
        >>> logits_difference(torch.tensor([[10.0, -20.0]]), torch.tensor([[10.0, -20.5]]))
        0.025
    """
    size = max(1.0, float(ours_SV.abs().max()))
    return float((ours_SV - theirs_SV).abs().max()) / size


def worst(found: Sequence[float]) -> float:
    """The largest; NaN, which compares with nothing, before all others."""
    return next((one for one in found if math.isnan(one)), max(found))


def check_token_ids(tokenizer: TextTokenizer, theirs: Sequence[Sequence[int]]) -> Check:
    """Compare an engine's ids of ``strings_to_tokenize()``, special tokens in front included."""
    strings = strings_to_tokenize()
    unequal = [
        string
        for string, ids, found in zip(strings, tokenizer.encode_batch(strings), theirs, strict=True)
        if [*tokenizer.bos_ids, *ids.tolist()] != list(found)
    ]
    detail = f"of {len(strings)}"
    if unequal:
        detail += f"; the first is {unequal[0][:40]!r}"
    return Check("strings with other token ids", len(unequal), 0, detail)


def check_trunk(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], limit: float) -> Check:
    """The largest difference of logits over several texts, as ``logits_difference`` counts."""
    pairs = list(zip(ours, theirs, strict=True))
    found = [logits_difference(mine_SV, theirs_SV) for mine_SV, theirs_SV in pairs]
    largest = max(float(mine_SV.abs().max()) for mine_SV in ours)
    positions = sum(len(mine_SV) for mine_SV in ours)
    return Check(name, worst(found), limit, f"{positions} positions, logits up to {largest:.3g}")


def check_as_served(ours: Ours, theirs: Sequence[Tensor], dtype: torch.dtype) -> Check:
    """Compare logits of the prompts as the engine computes them in 16 bits."""
    name = f"trunk's logits in {str(dtype).removeprefix('torch.')}, against float32 unrounded"
    return check_trunk(name, ours.unrounded, theirs, LIMITS_AS_SERVED[dtype])


def check_texts(name: str, ours: Ours, theirs: Sequence[Sequence[int]], tie: float) -> Check:
    """Count greedy texts that differ where no two logits were within ``tie`` of each other.

    Args:
        name: of the check.
        ours: with the texts to compare.
        theirs: prompt and continuation, of each.
        tie: as ``logits_difference`` counts: what passes as rounding of the logits.
    """
    different, ties = 0, 0
    for mine, found in zip(ours.texts, theirs, strict=True):
        if list(found) == mine:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(mine, found, strict=False)) if a != b),
            min(len(mine), len(found)),
        )
        if at >= min(len(mine), len(found)):  # one is longer
            different += 1
            continue
        logits_V = trunk_logits(ours.model, mine[:at])[-1]
        gap = float(logits_V[mine[at]] - logits_V[found[at]])
        is_tie = gap <= 2 * tie * max(1.0, float(logits_V.abs().max()))
        ties += is_tie
        different += not is_tie
    detail = f"of {len(ours.texts)}, {ours.new_tokens} new tokens each"
    if ties:
        detail += f"; {ties} part at a tie within rounding"
    return Check(name, different, 0, detail)
