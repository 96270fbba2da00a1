"""Text that is shown while it is written, and never half a character of it."""

from collections.abc import Iterable, Iterator
from typing import Final

import regex

_MAY_GO_ON: Final = regex.compile(
    r"[\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}\u200d\ufe0e\ufe0f"
    r"\U000e0020-\U000e007f\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]$"
)
"""Ends of text behind which the same character often goes on: emoji, which joiners, skin tones and
selectors follow, halves of flags, and conjoining jamo. Not digits, though a keycap may follow one:
text must not stand still at every number."""


def whole_characters(pieces: Iterable[str]) -> Iterator[str]:
    r"""The same text in pieces that cut no character where what follows may belong to it.

    A character is what readers take for one (a grapheme cluster): a family of four emoji held
    together by joiners, a flag of two letters, a syllable of conjoining jamo. Only what may go on
    waits, at most until the next character is there.

    Args:
        pieces: of text, whole code points.

    Source:
        Unicode Standard Annex 29, extended grapheme clusters, as the package regex finds them.

    Example:
        >>> list(whole_characters(["한", "국 \U0001f468", "\u200d", "\U0001f469", "!"]))
        ['한', '국 ', '👨\u200d👩!']
    """
    held = ""
    for piece in pieces:
        held += piece
        if not _MAY_GO_ON.search(held):
            complete, held = held, ""
        else:
            last = len(held) - len(regex.findall(r"\X", held)[-1])
            complete, held = held[:last], held[last:]
        if complete:
            yield complete
    if held:
        yield held
