"""Continue texts: one token after another, or with drafts of the model's own heads."""

from collections.abc import Collection, Generator, Sequence

from wmtp.errors import DataError
from wmtp.model.decoding.decoder import Decoder, Figures, StopReason, Text
from wmtp.model.decoding.draft_length import Speculative
from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.sampling import GREEDY, Sampling
from wmtp.model.llama import LlamaTrunk
from wmtp.model.multi_token import MultiTokenModel

__all__ = ["GREEDY", "Figures", "Sampling", "StopReason", "generate", "generate_many"]


def generate(
    model: MultiTokenModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
    speculative: Speculative = 0,
    draft_vocabulary: DraftVocabulary | None = None,
    compiled: bool = False,
) -> Generator[int, None, tuple[StopReason, Figures]]:
    """Continue a prompt, giving out tokens as they are found.

    Iterate over it for the tokens; ``reason, figures = yield from generate(...)`` also tells why it
    ended, and what was done. With drafts the greedy text is the same, but where two logits are
    within rounding of each other, because passes of several tokens add up in another order; and
    draws follow the same distribution, though not with the same numbers.

    Args:
        model: in evaluation mode, on any device.
        prompt_ids: tokens to continue, at least one.
        max_new_tokens: most tokens to add.
        sampling: how a token is chosen.
        stop_ids: tokens that end the text; they are not given out.
        speculative: tokens that the heads draft for each pass, at most ``H - 1``; "auto" for as
            many as pay; 0 for none.
        draft_vocabulary: tokens that drafts are chosen from; None for all.
        compiled: compile the steps, which takes some seconds for each number of drafts, prompts
            excepted; on CUDA they are also recorded and replayed.

    Returns:
        The reason why no more tokens come, and figures.

    Raises:
        DataError: the prompt is empty, longer than the context, or has tokens that the model
            does not know.
        DeviceError: ``compiled``, and nothing can be compiled here.
        ValueError: the model is in training mode.
    """
    _check(model, [prompt_ids])
    decoder = Decoder(
        model,
        [prompt_ids],
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        speculative=speculative,
        vocabulary=draft_vocabulary,
        compiled=compiled,
    )
    while not decoder.done:
        yield from decoder.round()[0]
    return decoder.texts[0].reason or "max_new_tokens", decoder.figures


def generate_many(
    model: MultiTokenModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop_ids: Collection[int] = (),
    speculative: Speculative = 0,
    draft_vocabulary: DraftVocabulary | None = None,
    compiled: bool = False,
) -> tuple[list[Text], list[Figures]]:
    """Continue several prompts at once; foreign trunks take them one after the other.

    Arguments and errors are those of ``generate``.

    Returns:
        The texts, and figures of each batch that was decoded: one, or one a prompt.
    """
    _check(model, prompts)
    together = isinstance(model.trunk, LlamaTrunk)
    batches = [list(prompts)] if together else [[prompt] for prompt in prompts]
    texts, figures = [], []
    for batch in batches:
        decoder = Decoder(
            model,
            batch,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_ids=stop_ids,
            speculative=speculative,
            vocabulary=draft_vocabulary,
            compiled=compiled,
        )
        while not decoder.done:
            decoder.round()
        texts += decoder.texts
        figures.append(decoder.figures)
    return texts, figures


def _check(model: MultiTokenModel, prompts: Sequence[Sequence[int]]) -> None:
    for prompt in prompts:
        _check_prompt(model, prompt)
    if model.training:
        raise ValueError("generate needs model.eval(); dropout would spoil the text")


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
