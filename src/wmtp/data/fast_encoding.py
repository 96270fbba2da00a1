"""Encoding with tiktoken: several times faster, with the ids that ``tokenizer.json`` gives.

tiktoken merges neighbours by the rank of the bytes that they make together, a ``tokenizer.json`` by
a list of pairs. The two agree where the list was learned by merging bytes: whatever stands around a
token's bytes, as long as no merge reaches across their ends the merges before the token's own leave
them cut as the pair that it is made of. Words are cut by another engine of regular expressions,
which may know another version of Unicode. So the tokenizer's parts are checked, characters younger
than Python's own tables go the slow way, and both encoders are compared on texts before use.
"""

import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from wmtp.data.byte_level import read_token
from wmtp.data.tokenizer import TextTokenizer, cuts_of

_NOTHING: NDArray[np.int32] = np.empty(0, dtype=np.int32)
_WHOLE = ((0, None),)

# Python's numbers are made into those of an array before they have left the processor's cache.
_RANKS_AT_ONCE = 1 << 12

INSTALL = "pip install 'wmtp[korean]'"

# What ``ByteLevel`` cuts by itself.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What is not in these has to be looked up one by one, which takes longer than tokenizing.
_OLD_CHARACTERS = re.compile(
    "[\0-\u0377\u1100-\u11ff\u2010-\u2064\u2190-\u2426\u2460-\u2b73\u3001-\u303f\u3131-\u318e"
    "\u3200-\u321e\u3220-\u9ffc\ua960-\ua97c\uac00-\ud7a3\uff01-\uff60\U0001f300-\U0001f64f]*"
)

# Where cutting and merging go astray if they do.
_STRANGE = (
    "한국어 토큰화를 시험합니다. 2026년 11월 1,234,567원! ㅋㅋㅋㅋㅋ ㅠㅠ",
    "나랏말ᄊᆞ미 듕귁에 달아 漢字와 ᄒᆞᆫ글 각 e\u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1f0\U0001f1f7 ❤\ufe0f",
    "  def f(x):\r\n\n\t return x'S  # don't 123\u00a0\u3000\x0b\x85 <|endoftext|></s>  \n ",
    "\0\x7f\ufeff\ufffd\u2028\U0010ffff ſ K ﬁ ½ ⅷ 𝟙",
    "ㅋ" * 301 + "a" * 301 + " " * 301 + "." * 301 + "\n" * 31,
)


class NoFastEncoderError(Exception):
    """Why a tokenizer has no fast encoder, for a person."""


def fast_encoder(tokenizer: TextTokenizer, texts: Sequence[str] = ()) -> "FastEncoder":
    """A fast encoder that gave the tokenizer's own ids for some texts and for strange ones.

    Raises:
        NoFastEncoderError: tiktoken is not installed, cannot do what the tokenizer does, or gave
            other ids.
    """
    encoder = FastEncoder(tokenizer)
    tried = [*_STRANGE, *texts]
    for text, own, fast in zip(
        tried, tokenizer.encode_batch(tried), encoder.encode_batch(tried), strict=True
    ):
        if not np.array_equal(own, fast):
            raise NoFastEncoderError(f"tiktoken gives other ids for {text[:40]!r}")
    return encoder


@final
class FastEncoder:
    """Ids of texts as ``TextTokenizer.encode_batch`` gives them; ``fast_encoder`` makes one.

    Attributes:
        encoding: tiktoken's own encoder, whose ids are ranks.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        """Take over the merges of a tokenizer.

        Raises:
            NoFastEncoderError: tiktoken is not installed, or cannot do what the tokenizer does.
        """
        if find_spec("tiktoken") is None:
            raise NoFastEncoderError(f"tiktoken is not installed: {INSTALL}")
        import tiktoken

        parts = tokenizer.parts
        self._composes = _composes(parts.get("normalizer"))
        _check_added_tokens(parts)
        ranks, ids = _ranks(parts["model"])
        pattern = _pattern(parts.get("pre_tokenizer"))
        self._tokenizer = tokenizer
        self._id_of_rank = np.array(ids, dtype=np.int32)
        try:
            self.encoding = tiktoken.Encoding(
                "wmtp", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except ValueError as error:
            raise NoFastEncoderError(f"tiktoken cannot cut its words: {error}") from error

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text, without what goes in front of it or ends it."""
        ids, lengths = self.encode_joined(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []

    def encode_joined(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The same ids, all texts' one after the other, and how many there are of each."""
        parts: list[NDArray[np.int32]] = [_NOTHING]
        ranks: list[int] = []
        lengths: list[int] = []
        slow: list[int] = []
        encode = self.encoding.encode_ordinary
        for index, text in enumerate(texts):
            before = len(ranks)
            if self._must_be_slow(text):
                slow.append(index)
            else:
                borders = cuts_of(text)  # where the tokenizer itself cuts
                for start, stop in pairwise(borders) if len(borders) > 2 else _WHOLE:
                    ranks += encode(text[start:stop])
            lengths.append(len(ranks) - before)
            if len(ranks) > _RANKS_AT_ONCE:
                parts.append(np.fromiter(ranks, np.int32, len(ranks)))
                ranks.clear()
        parts.append(np.fromiter(ranks, np.int32, len(ranks)))
        ids = self._id_of_rank[np.concatenate(parts)]
        if not slow:
            return ids, np.array(lengths, dtype=np.int64)
        own = self._tokenizer.encode_batch([texts[index] for index in slow])
        places = np.cumsum(lengths)[slow]  # where nothing stands for them yet
        for index, ids_of_text in zip(slow, own, strict=True):
            lengths[index] = len(ids_of_text)
        places = np.repeat(places, [len(ids_of_text) for ids_of_text in own])
        return np.insert(ids, places, np.concatenate(own)), np.array(lengths, dtype=np.int64)

    def _must_be_slow(self, text: str) -> bool:
        old = _OLD_CHARACTERS.match(text)
        assert old is not None
        if old.end() < len(text) and _young_characters().search(text, old.end()):
            return True
        return self._composes and not unicodedata.is_normalized("NFC", text)


@cache
def _young_characters() -> re.Pattern[str]:
    """Characters that have no meaning yet in Python's Unicode tables."""
    unassigned = np.array(
        [unicodedata.category(chr(code)) == "Cn" for code in range(sys.maxunicode + 1)]
    )
    borders = np.flatnonzero(np.diff(unassigned, prepend=False, append=False)).tolist()
    ranges = zip(borders[::2], borders[1::2], strict=True)
    return re.compile("[" + "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in ranges) + "]")


def _composes(normalizer: Any) -> bool:
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise NoFastEncoderError(f"it changes the text first ({normalizer.get('type')})")
    return normalizer is not None


def _check_added_tokens(parts: Mapping[str, Any]) -> None:
    for added in parts.get("added_tokens") or ():
        if not added["special"]:
            raise NoFastEncoderError(
                f"it has an added token that texts may hold, {added['content']!r}"
            )


def _ranks(model: Mapping[str, Any]) -> tuple[dict[bytes, int], list[int]]:
    """The order of all tokens that merging makes, and the id of each."""
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(key) for key in odd):
        raise NoFastEncoderError("it is no plain byte-level BPE")
    ids: dict[bytes, int] = {}
    for text, token_id in model["vocab"].items():
        token = read_token(text)
        if token is not None:
            ids[token] = token_id
    ranks = {bytes([byte]): byte for byte in range(256)}
    for merge in model["merges"]:
        pair = merge if isinstance(merge, list) else merge.split(" ")
        token = read_token("".join(pair))
        if token is None or token in ranks:
            raise NoFastEncoderError("two of its merges make the same token")
        ranks[token] = len(ranks)
    missing = ranks.keys() - ids.keys()
    if missing:
        raise NoFastEncoderError(f"its vocabulary lacks {len(missing)} tokens, of bytes or merges")
    return ranks, [ids[token] for token in ranks]


def _pattern(pre_tokenizer: Any) -> str:
    """The one expression that cuts a text into words."""
    steps = (
        pre_tokenizer["pretokenizers"]
        if pre_tokenizer and pre_tokenizer["type"] == "Sequence"
        else [pre_tokenizer]
    )
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_WORDS
        case [
            {
                "type": "Split",
                "pattern": {"Regex": str(words)},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return words
    raise NoFastEncoderError("it cuts words in more than one step")
