"""What a tokenizer makes of texts, ours or anybody's, source by source."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from wmtp.data.fast_encoding import INSTALL, NoFastEncoderError, fast_encoder
from wmtp.data.tokenizer import TextTokenizer
from wmtp.errors import DataError
from wmtp.untrusted import LARGEST_JSON, read_bounded

SENTENCEPIECE_SUFFIX = ".model"
_SCRIPTS = ("HANGUL", "CJK", "LATIN", "CYRILLIC", "HIRAGANA", "KATAKANA", "GREEK")
_BATCH_TEXTS = 512


class Described(Protocol):
    """What is asked of a tokenizer that is described."""

    vocab_size: int

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, without what goes in front of it or ends it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""

    def token_text(self, token_id: int) -> str:
        """What one token stands for."""

    def about(self) -> dict[str, str]:
        """More that a person should know."""


@dataclass
class SourceCounts:
    """Counts over the texts of one source.

    Attributes:
        eojeol: runs of characters between white space.
        lossless: texts that came back from encoding and decoding as they were.
    """

    texts: int = 0
    lossless: int = 0
    text_bytes: int = 0
    characters: int = 0
    eojeol: int = 0
    tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that one token stands for on average."""
        return self.text_bytes / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_eojeol(self) -> float:
        """Tokens that one eojeol takes on average, its space and punctuation included."""
        return self.tokens / self.eojeol if self.eojeol else 0.0

    def as_json(self) -> dict[str, float]:
        """All counts and ratios."""
        ratios = (self.bytes_per_token, self.tokens_per_eojeol)
        names = ("bytes_per_token", "tokens_per_eojeol")
        return asdict(self) | {n: round(r, 4) for n, r in zip(names, ratios, strict=True)}


@dataclass(frozen=True)
class TokenizerDescription:
    """What a tokenizer makes of some texts.

    Attributes:
        name: where it comes from.
        about: fingerprint, special tokens and the like.
        sources: counts of each source, in the order in which they were first met.
        vocabulary_used: share of the vocabulary that occurred.
        scripts: how many tokens of the vocabulary are of which script.
        longest_tokens: the vocabulary's longest words, by UTF-8 bytes, longest first; runs of
            spaces and rulers, which are longer still, say little.
        first_lossy: the beginning of the first text that did not come back, or None.
    """

    name: str
    vocab_size: int
    about: Mapping[str, str]
    sources: Mapping[str, SourceCounts]
    vocabulary_used: float
    scripts: Mapping[str, int]
    longest_tokens: tuple[str, ...]
    first_lossy: str | None = field(default=None)

    @property
    def total(self) -> SourceCounts:
        """The counts of all sources together: bytes over tokens, whichever source they are of."""
        total = SourceCounts()
        for counts in self.sources.values():
            for key, value in asdict(counts).items():
                setattr(total, key, getattr(total, key) + value)
        return total

    def lines(self) -> list[str]:
        """The description for a person."""
        total = self.total
        lines = [
            f"vocabulary: {self.vocab_size:,} ids, {self.vocabulary_used:.1%} of them used here",
            *(f"{key}: {value}" for key, value in self.about.items()),
            f"texts: {total.texts:,}, of which {total.lossless:,} come back as they were",
            f"bytes per token: {total.bytes_per_token:.3f} ({total.text_bytes:,} bytes, "
            f"{total.characters:,} characters, {total.tokens:,} tokens)",
            f"tokens per eojeol: {total.tokens_per_eojeol:.3f}",
        ]
        if self.first_lossy is not None:
            lines.append(f"first text that did not come back: {self.first_lossy!r}")
        if len(self.sources) > 1:
            lines += [
                f"  {name}: {counts.bytes_per_token:.3f} bytes per token, "
                f"{counts.tokens_per_eojeol:.3f} tokens per eojeol, {counts.text_bytes:,} bytes"
                for name, counts in self.sources.items()
            ]
        found = ", ".join(f"{script} {count:,}" for script, count in self.scripts.items())
        return [
            *lines,
            f"vocabulary by script: {found}",
            f"longest words: {' '.join(map(repr, self.longest_tokens))}",
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return {
            "name": self.name,
            "vocab_size": self.vocab_size,
            **self.about,
            "vocabulary_used": round(self.vocabulary_used, 6),
            "scripts": dict(self.scripts),
            "longest_tokens": list(self.longest_tokens),
            "first_lossy": self.first_lossy,
            "all": self.total.as_json(),
            "sources": {name: counts.as_json() for name, counts in self.sources.items()},
        }


def open_described(path: str) -> Described:
    """A tokenizer to describe: a ``tokenizer.json``, its folder, or a SentencePiece ``.model``.

    Raises:
        DataError: there is none, it cannot be read, or sentencepiece is not installed.
    """
    if Path(path).suffix == SENTENCEPIECE_SUFFIX:
        return _SentencePiece(Path(path))
    return _OfTokenizerJson(TextTokenizer.load(path))


def describe_tokenizer(
    tokenizer: Described, texts: Iterable[tuple[str, str]], longest: int = 10, name: str = ""
) -> TokenizerDescription:
    """Measure a tokenizer on texts, best on some it was not trained on.

    Args:
        tokenizer: see ``open_described``.
        texts: pairs of a source's name and a text.
        longest: how many of the longest words to tell.
        name: of the tokenizer.
    """
    sources: dict[str, SourceCounts] = {}
    is_used_V = np.zeros(tokenizer.vocab_size, dtype=bool)
    first_lossy: str | None = None
    for batch in _in_batches(texts):
        encoded = tokenizer.encode_batch([text for _, text in batch])
        for (source, text), ids in zip(batch, encoded, strict=True):
            counts = sources.setdefault(source, SourceCounts())
            comes_back = tokenizer.decode(ids.tolist()) == text
            counts.texts += 1
            counts.lossless += comes_back
            counts.text_bytes += len(text.encode("utf-8"))
            counts.characters += len(text)
            counts.eojeol += len(text.split())
            counts.tokens += len(ids)
            is_used_V[ids] = True
            if not comes_back and first_lossy is None:
                first_lossy = text[:80]
    tokens = [tokenizer.token_text(token_id) for token_id in range(tokenizer.vocab_size)]
    words = [text for text in tokens if any(map(str.isalpha, text))]
    return TokenizerDescription(
        name=name,
        vocab_size=tokenizer.vocab_size,
        about=tokenizer.about(),
        sources=sources,
        vocabulary_used=float(is_used_V.mean()),
        scripts=dict(Counter(map(script_of, tokens)).most_common()),
        longest_tokens=tuple(
            sorted(words, key=lambda text: (-len(text.encode("utf-8")), text))[:longest]
        ),
        first_lossy=first_lossy,
    )


def compare(found: Sequence[TokenizerDescription]) -> list[str]:
    """Several descriptions beside each other, source by source, in bytes per token."""
    names = [one.name for one in found]
    rows = [("all", [one.total for one in found])]
    if len(found[0].sources) > 1:
        rows += [(name, [one.sources[name] for one in found]) for name in found[0].sources]
    widest = max(len(name) for name, _ in rows)
    lines = [f"bytes per token, of {', '.join(f'({i}) {name}' for i, name in enumerate(names, 1))}"]
    for name, counts in rows:
        lines.append(f"  {name:<{widest}}" + "".join(f"{c.bytes_per_token:9.3f}" for c in counts))
    lossy = "".join(f"{one.total.texts - one.total.lossless:9,}" for one in found)
    return [*lines, f"  {'lossy':<{widest}}{lossy}"]


def script_of(token: str) -> str:
    """The script of a token's letters, ``mixed`` where there are several.

    Example:
        >>> [script_of(token) for token in (" 한국어", "漢字", "Word", "IT기업", " 12")]
        ['hangul', 'hanja', 'latin', 'mixed', 'digits']
    """
    found = {_script(character) for character in token if character.isalpha()}
    if "\ufffd" in token:
        return "part of a character"
    if not found:
        return "digits" if any(map(str.isdigit, token)) else "others"
    return found.pop() if len(found) == 1 else "mixed"


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "")
    script = next((one for one in _SCRIPTS if one in name.split(" ", 2)[:2]), None)
    if script is None and name.startswith(("CJK", "KANGXI")):
        script = "CJK"
    return {"CJK": "hanja", None: "other letters"}.get(script) or str(script).lower()


def _in_batches(texts: Iterable[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for pair in texts:
        batch.append(pair)
        if len(batch) == _BATCH_TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch


@final
class _OfTokenizerJson:
    """A ``tokenizer.json``, through the fast encoder where it has one."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        try:
            self._encoder: Any = fast_encoder(tokenizer)
            self._speed = "equal to tokenizer.json's"
        except NoFastEncoderError as error:
            self._encoder, self._speed = tokenizer, f"none: {error}"

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        found: list[NDArray[np.int32]] = self._encoder.encode_batch(texts)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def token_text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id)

    def about(self) -> dict[str, str]:
        front = " ".join(map(self._tokenizer.token_text, self._tokenizer.bos_ids))
        return {
            "fingerprint": self._tokenizer.fingerprint[:12],
            "in front of a text": front or "nothing",
            "at its end": self._tokenizer.token_text(self._tokenizer.eos_id),
            "fast encoder": self._speed,
        }


@final
class _SentencePiece:
    """A SentencePiece model, read with its own library."""

    def __init__(self, path: Path) -> None:
        if find_spec("sentencepiece") is None:
            raise DataError(
                f"tokenizer '{path}': sentencepiece is not installed. Get it with: {INSTALL}."
            )
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(
                model_proto=read_bounded(path, LARGEST_JSON)
            )
        except OSError as error:
            raise DataError(
                f"tokenizer '{path}' cannot be read: {error.strerror or error}."
            ) from error
        except RuntimeError as error:
            raise DataError(f"tokenizer '{path}' is no SentencePiece model: {error}.") from error
        self.vocab_size = int(self._model.vocab_size())

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [np.array(ids, dtype=np.int32) for ids in self._model.encode(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode(list(ids)))

    def token_text(self, token_id: int) -> str:
        return str(self._model.id_to_piece(token_id)).replace("\u2581", " ")

    def about(self) -> dict[str, str]:
        return {"kind": "SentencePiece"}
