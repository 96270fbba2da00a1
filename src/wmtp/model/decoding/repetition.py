"""Words that were said already become less likely, or are not said again."""

from collections.abc import Sequence

import torch
from torch import Tensor


def without_repetition(
    logits_NV: Tensor,
    texts: Sequence[Sequence[int]],
    *,
    penalty: float = 1.0,
    ngram: int = 0,
) -> Tensor:
    """Logits with what their texts have said already made less likely, or impossible.

    A token that is in the text has its logit divided by ``penalty`` where it is positive, and
    multiplied by it where it is negative. With ``ngram`` ``n`` no ``n`` tokens in a row come twice:
    what would complete a run that is in the text gets the logit minus infinity. Where that leaves
    no token at all, nothing is forbidden.

    Args:
        logits_NV: of the next token of each text.
        texts: its tokens so far, prompt included.
        penalty: above 0; 1 changes nothing.
        ngram: at least 1; 0 forbids nothing.

    Source:
        penalty: Keskar et al. 2019 (arXiv:1909.05858), section 4.1, in the form that
        ``transformers`` gave it; n-grams: Paulus et al. 2017 (arXiv:1705.04304), section 2.5.

    Example:
        Tokens 0 and 1 were said; after the second 0 a run of two would repeat "0 1".

        >>> logits = torch.tensor([[4.0, -1.0, 3.0]])
        >>> without_repetition(logits, [[0, 1, 0]], penalty=2.0)
        tensor([[ 2., -2.,  3.]])
        >>> without_repetition(logits, [[0, 1, 0]], ngram=2)
        tensor([[4., -inf, 3.]])
    """
    found_NV = logits_NV.clone()
    for row_V, text in zip(found_NV, texts, strict=True):
        if penalty != 1.0:
            said = torch.tensor(sorted(set(text)), dtype=torch.int64, device=row_V.device)
            logits = row_V[said]
            row_V[said] = torch.where(logits < 0, logits * penalty, logits / penalty)
        forbidden = completing(text, ngram)
        if 0 < len(forbidden) < len(row_V):
            row_V[torch.tensor(sorted(forbidden), device=row_V.device)] = -torch.inf
    return found_NV


def completing(text: Sequence[int], ngram: int) -> set[int]:
    """The tokens that would make the last ``ngram`` tokens of a text a run that it has already.

    Example:
        >>> completing([5, 6, 7, 5, 6], 3), completing([5, 6, 7, 5, 6], 1)
        ({7}, {5, 6, 7})
    """
    if ngram < 1 or len(text) < ngram:
        return set()
    last = list(text[len(text) - ngram + 1 :])
    return {
        text[end]
        for end in range(ngram - 1, len(text))
        if list(text[end - ngram + 1 : end]) == last
    }
