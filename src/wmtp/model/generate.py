"""Plain decoding: one token after another, with cached keys and values."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wmtp.errors import DataError
from wmtp.model.kv_cache import Cache
from wmtp.model.multi_token import MultiTokenModel

StopReason = Literal["stop_id", "max_new_tokens", "context"]
"""Why decoding ended: a stop token, enough tokens, or no room for more in the model's context."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draw from the fewest likeliest tokens that together have this probability.
        seed: fixes the draws, on any device.

    Raises:
        ValueError: the temperature is negative or ``top_p`` is not in (0, 1].
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature} must be at least 0 and "
                f"top_p {self.top_p} in (0, 1]"
            )


GREEDY = Sampling()


def generate(
    model: MultiTokenModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
) -> Generator[int, None, StopReason]:
    """Continue a prompt, one token at a time as they are found.

    Iterate over it for the tokens; ``reason = yield from generate(...)`` also tells why it ended.
    The host waits for the device once per token.

    Args:
        model: in evaluation mode, on any device.
        prompt_ids: tokens to continue, at least one.
        max_new_tokens: most tokens to add.
        sampling: how a token is chosen.
        stop_ids: tokens that end the text; they are not given out.

    Returns:
        The reason why no more tokens come.

    Raises:
        DataError: the prompt is empty, longer than the context, or has tokens that the model
            does not know.
        ValueError: the model is in training mode.
    """
    _check_prompt(model, prompt_ids)
    if model.training:
        raise ValueError("generate needs model.eval(); dropout would spoil the text")
    context = model.trunk_shape.max_seq_length
    cache = model.new_cache(min(context, len(prompt_ids) + max_new_tokens))
    draws = torch.Generator().manual_seed(sampling.seed)
    tokens_BS = torch.tensor([prompt_ids], device=model.device)
    for _ in range(max_new_tokens):
        if cache.length + tokens_BS.shape[1] > context:
            return "context"
        with torch.no_grad():
            tokens_BS = next_tokens(model, tokens_BS, cache, sampling, draws)
        token = int(tokens_BS)
        if token in stop_ids:
            return "stop_id"
        yield token
    return "max_new_tokens"


def next_tokens(
    model: MultiTokenModel,
    tokens_BS: Tensor,
    cache: Cache,
    sampling: Sampling,
    draws: torch.Generator,
) -> Tensor:
    """Read tokens that are not in the cache yet and choose the one after them, ``[B, 1]``."""
    hidden_BD = model.next_token_hidden(tokens_BS, cache=cache)[:, -1]
    return choose(hidden_BD @ model.unembedding_VD.T, sampling, draws)


def choose(logits_BV: Tensor, sampling: Sampling, draws: torch.Generator) -> Tensor:
    """Pick one token per row, int64 ``[B, 1]``.

    A draw is one uniform number per row, taken on the CPU and looked up in the sorted cumulative
    distribution: the same seed means the same draws on every device.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> choose(torch.tensor([[0.0, 3.0, 1.0]]), Sampling(temperature=1.0, top_p=0.5), draws)
        tensor([[1]])
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    scaled_BV, ids_BV = (logits_BV.float() / sampling.temperature).sort(dim=-1, descending=True)
    cumulative_BV = scaled_BV.softmax(dim=-1).cumsum(dim=-1)
    # The nucleus ends with the first token at which top_p is reached; rounding may leave the last
    # sum under 1.
    reached_BV = cumulative_BV >= cumulative_BV[:, -1:].clamp(max=sampling.top_p)
    last_B1 = reached_BV.int().argmax(dim=-1, keepdim=True)
    uniform_B1 = torch.rand(logits_BV.shape[0], 1, generator=draws).to(logits_BV.device)
    drawn_B1 = uniform_B1 * cumulative_BV.gather(1, last_B1)
    rank_B1 = (cumulative_BV <= drawn_B1).sum(dim=-1, keepdim=True)
    return ids_BV.gather(1, rank_B1.minimum(last_B1))


def _check_prompt(model: MultiTokenModel, prompt_ids: Sequence[int]) -> None:
    context, vocabulary = model.trunk_shape.max_seq_length, model.trunk_shape.vocab_size
    if not prompt_ids:
        raise DataError("The prompt is empty. Give at least one token to continue.")
    if len(prompt_ids) > context:
        raise DataError(
            f"The prompt has {len(prompt_ids)} tokens, but the model's context has {context}. "
            "Shorten the prompt."
        )
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocabulary:
        raise DataError(
            f"The prompt has token ids {min(prompt_ids)} to {max(prompt_ids)}, but the model knows "
            f"0 to {vocabulary - 1}. Use the tokenizer that the model was trained with."
        )
