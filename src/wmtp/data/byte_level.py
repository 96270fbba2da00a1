"""Byte-level tokens: how a ``tokenizer.json`` writes bytes, and the merges behind tokens."""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise


@cache
def byte_characters() -> tuple[str, ...]:
    """The character that stands for each of the 256 bytes.

    Printable characters of Latin-1 stand for their own byte; the other bytes take the characters
    from U+0100 on, in order.

    Source:
        Radford et al. 2019, GPT-2's ``encoder.py``, which every byte-level BPE follows.

    Example:
        >>> byte_characters()[ord("a")], byte_characters()[ord(" ")], byte_characters()[0]
        ('a', 'Ġ', 'Ā')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


def written(token: bytes) -> str:
    """A token as a ``tokenizer.json`` writes it.

    Example:
        >>> written(" 가".encode())
        'Ġê°Ģ'
    """
    return "".join(byte_characters()[byte] for byte in token)


def read_token(text: str) -> bytes | None:
    """The bytes of a token as it is written; None if it is no byte-level token.

    Example:
        >>> read_token("Ġê°Ģ").decode(), read_token("가")
        (' 가', None)
    """
    table = _bytes_of_characters()
    try:
        return bytes(table[character] for character in text)
    except KeyError:
        return None


def last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two parts that a token is merged from, by all merges that come before it.

    Args:
        token: at least two bytes long.
        ranks: the order of all tokens, single bytes among them; a lower one is merged first.

    Returns:
        None where those merges do not leave two parts: then no merge of two tokens makes it.

    Example:
        >>> ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"abc": 4}
        >>> last_merge(b"abc", ranks), last_merge(b"bc", ranks)
        ((b'a', b'bc'), (b'b', b'c'))
    """
    own = ranks[token]
    parts: Sequence[bytes] = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, own) for a, b in pairwise(parts)]
        first = min(joined)
        if first >= own:
            return None
        at = joined.index(first)
        parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
    return parts[0], parts[1]
