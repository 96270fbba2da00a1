"""How the next token is chosen: the likeliest, or a draw from a distribution that is cut short."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: draw from the fewest likeliest tokens that together have this probability.
        seed: fixes the draws, on any device.
        repetition_penalty: makes tokens that the text has already less likely, see
            ``without_repetition``; 1 changes nothing.
        no_repeat_ngram: so many tokens in a row never come twice; 0 forbids nothing.

    Raises:
        ValueError: the temperature is negative, ``top_p`` is not in (0, 1], the penalty not
            above 0 or the length of the runs negative.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < math.inf or self.no_repeat_ngram < 0:
            raise ValueError(
                f"repetition_penalty {self.repetition_penalty} must be above 0 and "
                f"no_repeat_ngram {self.no_repeat_ngram} at least 0"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature} must be at least 0 and "
                f"top_p {self.top_p} in (0, 1]"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def looks_back(self) -> bool:
        """Whether what a text has said already has a say in what comes next."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0


GREEDY = Sampling()


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What a token is drawn from, float32 of the shape of the logits ``[..., V]``.

    The nucleus ends with the first token at which ``top_p`` is reached.

    Example:
        >>> probabilities(torch.tensor([0.5, 0.3, 0.2]).log(), Sampling(1.0, top_p=0.6))
        tensor([0.6250, 0.3750, 0.0000])
    """
    p = (logits.float() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p == 1:
        return p
    sorted_p, ids = p.sort(dim=-1, descending=True)
    before = sorted_p.cumsum(dim=-1) - sorted_p
    kept = torch.zeros_like(p).scatter(-1, ids, torch.where(before < sampling.top_p, sorted_p, 0))
    return kept / kept.sum(dim=-1, keepdim=True)


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """Ids drawn from distributions ``[..., V]`` by one uniform number each, int64 ``[...]``.

    The numbers come from the CPU, so that the same seed means the same draws on every device.

    Example:
        >>> draw(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0.7, 0.1]))
        tensor([1, 1])
    """
    cumulative = p.cumsum(dim=-1)
    drawn = uniform.unsqueeze(-1) * cumulative[..., -1:]
    ids = (cumulative <= drawn).sum(dim=-1)
    # rounding may leave the number at the very end, behind the last token that has a chance
    last = p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(dim=-1)
    return ids.minimum(last)


def choose(logits: Tensor, sampling: Sampling, draws: torch.Generator) -> Tensor:
    """One token for each row of logits ``[..., V]``, int64 ``[...]``.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> choose(torch.tensor([[0.0, 3.0, 1.0]]), Sampling(temperature=1.0, top_p=0.5), draws)
        tensor([1])
    """
    if sampling.is_greedy:
        return logits.argmax(dim=-1)
    return draw(probabilities(logits, sampling), uniforms(logits.shape[:-1], draws, logits.device))


def uniforms(shape: torch.Size, draws: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1) from a generator of the CPU."""
    return torch.rand(shape, generator=draws).to(device)
