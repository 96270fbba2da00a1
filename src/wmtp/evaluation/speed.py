"""How fast a model writes."""

from collections.abc import Sequence
from dataclasses import dataclass

from wmtp.model.decoding.draft_length import Speculative
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.generate import generate
from wmtp.model.multi_token import MultiTokenModel


@dataclass(frozen=True)
class SpeedFigures:
    """What decoding one text at a time took.

    Attributes:
        texts: prompts that were continued.
        tokens: added after the prompts were read.
        seconds: they took, without the pass over each prompt.
        tokens_per_pass: more than 1 where drafts were taken.
    """

    texts: int
    tokens: int
    seconds: float
    tokens_per_pass: float

    @property
    def tokens_per_second(self) -> float:
        """Of one text at a time."""
        return self.tokens / self.seconds


def measure_speed(
    model: MultiTokenModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    speculative: Speculative = "auto",
    draft_vocabulary: DraftVocabulary | None = None,
) -> SpeedFigures | None:
    """Continue each prompt without drawing; no token ends a text.

    Args:
        model: in evaluation mode, packed if it is to be.
        prompts: tokens, each at least one and shorter than the context.
        max_new_tokens: of each text, at least 2.
        speculative: as in ``generate``.
        draft_vocabulary: as in ``generate``.

    Returns:
        The figures; None if there is no prompt, or none leaves room for two tokens.
    """
    tokens = passes = texts = 0
    seconds = 0.0
    for prompt in prompts:
        decoding = generate(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            speculative=speculative,
            draft_vocabulary=draft_vocabulary,
        )
        while True:
            try:
                next(decoding)
            except StopIteration as end:
                _, figures = end.value
                break
        texts += 1
        tokens += figures.decoding_tokens
        passes += figures.text_passes
        seconds += figures.decoding_seconds
    if not tokens or not seconds:
        return None
    return SpeedFigures(texts, tokens, seconds, tokens / passes)
