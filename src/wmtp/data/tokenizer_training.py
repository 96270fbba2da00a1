"""A tokenizer of one's own: byte-level BPE, learned from text."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Final, Literal, get_args

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from wmtp.data.byte_level import byte_characters, last_merge, written
from wmtp.data.fast_encoding import INSTALL
from wmtp.data.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TextTokenizer,
    config_content,
    cuts_of,
)
from wmtp.errors import DataError

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257
LARGEST_VOCABULARY = 1 << 20

Trainer = Literal["auto", "rustbpe", "tokenizers"]
Digits = Literal[1, 2, 3]

# A single word of a hundred thousand characters takes it minutes.
_LONGEST_PIECE_OF_RUSTBPE: Final = 1 << 12
MOST_BYTES_OF_RUSTBPE: Final = (1 << 31) - 1
"""It counts pairs of bytes in signed numbers of 32 bits."""


def words(digits: Digits = 1) -> str:
    r"""The expression that cuts a text into words, within which tokens are merged.

    It is GPT-4's (tiktoken, cl100k_base) with combining marks kept on their letters, so that
    decomposed Hangul and old Hangul stay words. An eojeol goes with the space before it, Hangul is
    not cut from Latin letters or hanja beside it, and a run of ㅋ or ㅠ is a word.

    Args:
        digits: how many make a group at most. llama.cpp cuts exactly so under the name ``qwen35``
            for single digits, and under no name for pairs or threes: such a tokenizer is not
            exported to GGUF. ``benchmarks/results/tokenizer_cpu.md`` has what each of them costs.

    Example:
        >>> import tokenizers
        >>> split = pre_tokenizers.Split(tokenizers.Regex(words()), "isolated")
        >>> [word for word, _ in split.pre_tokenize_str("3대 IT기업에서 ㅋㅋㅋ 12개!")]
        ['3', '대', ' IT기업에서', ' ㅋㅋㅋ', ' ', '1', '2', '개', '!']
    """
    return "|".join(
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            r"\p{N}" if digits == 1 else rf"\p{{N}}{{1,{digits}}}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


WORDS = words()


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    digits: Digits = 1,
    compose: bool = False,
    trainer: Trainer = "tokenizers",
) -> TextTokenizer:
    """Learn a byte-level BPE: every text comes back as it was, whatever its script.

    ``<|endoftext|>`` has id 0, stands in front of every text and ends it. The same texts give the
    same tokenizer with the same trainer; between trainers, ties fall differently.

    Args:
        texts: read once.
        vocab_size: at least 257, one for each byte and one special; fewer come out where the
            texts have too few different words.
        digits: most digits in a word.
        compose: texts are composed (NFC) before they are tokenized, and come back so.
        trainer: the library that learns; ``auto`` takes the faster rustbpe where it is installed.

    Raises:
        DataError: an option is out of range, there is no text, or the trainer is not installed.
    """
    _check_options(vocab_size, digits)
    model = _pipeline(digits, compose)
    count, normalizer = 0, normalizers.NFC()

    def counted() -> Iterator[str]:
        nonlocal count
        for text in texts:
            count += 1
            # not with the model's own normalizer: a model that learns lets nobody else in
            yield normalizer.normalize_str(text) if compose else text

    if choose_trainer(trainer) == "rustbpe":
        model.model = _learn_with_rustbpe(counted(), vocab_size, digits)
        model.add_special_tokens([END_OF_TEXT])
    else:
        _learn_with_tokenizers(model, counted(), vocab_size)
    if not count:
        raise DataError("there is no text to train a tokenizer on.")
    eos_id = 0  # special tokens come first
    assert model.token_to_id(END_OF_TEXT) == eos_id
    model.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B:1",
        special_tokens=[(END_OF_TEXT, eos_id)],
    )
    files = {
        TOKENIZER_FILE: model.to_str(pretty=True).encode(),
        CONFIG_FILE: config_content(eos_token=END_OF_TEXT, bos_token=END_OF_TEXT),
    }
    return TextTokenizer(model, eos_id, files)


def choose_trainer(trainer: str) -> Literal["rustbpe", "tokenizers"]:
    """The library that a name stands for on this machine.

    Raises:
        DataError: there is no trainer of that name, or it is not installed.
    """
    if trainer not in get_args(Trainer):
        raise DataError(f"trainer is '{trainer}'. Use {', '.join(get_args(Trainer))}.")
    is_there = find_spec("rustbpe") is not None
    if trainer == "rustbpe" and not is_there:
        raise DataError(f"trainer is 'rustbpe', which is not installed. Get it with: {INSTALL}.")
    return "rustbpe" if is_there and trainer != "tokenizers" else "tokenizers"


def _check_options(vocab_size: int, digits: int) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocab_size is {vocab_size}, but a byte-level tokenizer needs at least "
            f"{SMALLEST_VOCABULARY}: 256 bytes and {END_OF_TEXT}."
        )
    if vocab_size > LARGEST_VOCABULARY:
        raise DataError(f"vocab_size is {vocab_size}; {LARGEST_VOCABULARY} is the most.")
    if digits not in get_args(Digits):
        raise DataError(f"digits is {digits}. Use 1, 2 or 3.")


def _pipeline(digits: Digits, compose: bool) -> Tokenizer:
    """A tokenizer without a vocabulary."""
    model = Tokenizer(models.BPE())
    if compose:
        model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words(digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model.decoder = decoders.ByteLevel()
    return model


def _learn_with_tokenizers(model: Tokenizer, texts: Iterator[str], vocab_size: int) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)


def _learn_with_rustbpe(texts: Iterator[str], vocab_size: int, digits: Digits) -> models.BPE:
    """Learn tokens, and find the pair behind each, which rustbpe does not tell."""
    import rustbpe

    total = 0

    def pieces() -> Iterator[str]:
        nonlocal total
        for text in texts:
            total += len(text.encode())
            if total > MOST_BYTES_OF_RUSTBPE:
                raise DataError(
                    f"there are more than {MOST_BYTES_OF_RUSTBPE:,} bytes of text, which rustbpe "
                    "cannot count. Set --sample-bytes, or --trainer tokenizers."
                )
            for start, stop in pairwise(cuts_of(text, _LONGEST_PIECE_OF_RUSTBPE)):
                yield text[start:stop]

    learner = rustbpe.Tokenizer()
    learner.train_from_iterator(pieces(), vocab_size - 1, pattern=words(digits))
    ranks = {bytes(token): rank for token, rank in learner.get_mergeable_ranks()}
    vocab = {END_OF_TEXT: 0}
    for character in sorted(byte_characters()):
        vocab[character] = len(vocab)
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__)[256:]:
        pair = last_merge(token, ranks)
        assert pair is not None
        merges.append((written(pair[0]), written(pair[1])))
        vocab[written(token)] = len(vocab)
    return models.BPE(vocab, merges)
