"""Texts that were decoded wrongly: replacement characters, and Korean read as something else."""

import re
from dataclasses import dataclass
from typing import ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts
from wmtp.corpus.stages.hangul import SYLLABLES, rare_syllables, syllables_at_least

_REPLACEMENT = "\ufffd"
_LATIN_SUPPLEMENT = re.compile("[\u0080-\u00ff\u0152-\u0192\u02c6-\u02dc\u2013-\u2122]")


@dataclass(frozen=True, slots=True)
class WrongEncoding:
    """Drop texts whose bytes were once decoded with another encoding than they were written in.

    Attributes:
        max_replacement_share: of characters that may be U+FFFD.
        max_latin_share: of characters that may be accented Latin letters or Windows-1252's signs
            before it is tried whether they are Korean bytes read as Latin.
        max_rare_share: of Hangul syllables, and of the different ones among them, that may be none
            of the 2350 of KS X 1001. Korean UTF-8 read as CP949 comes out as 9 in 10 of such;
            prose has fewer than 1 in 100, and who laughs 핳핳핳 has one in many copies.
        min_syllables: fewer than these are too few to judge by ``max_rare_share``.
        min_rare: different rare syllables that a text must have to be judged by them.

    Drops:
        ``replacement_characters``, ``mojibake``.

    Example:
        >>> from wmtp.corpus.document import Place
        >>> def told(text):
        ...     return WrongEncoding()(Document("1", text, "web", "", Place("a", 0)))
        >>> told("안녕하세요 여러분".encode().decode("euc-kr", "replace")).reason
        'replacement_characters'
        >>> told("안녕하세요, 반갑습니다".encode("cp949").decode("latin-1")).reason
        'mojibake'
    """

    name: ClassVar[str] = "wrong_encoding"

    max_replacement_share: float = 0.001
    max_latin_share: float = 0.1
    max_rare_share: float = 0.3
    min_syllables: int = 20
    min_rare: int = 6

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        text = document.text
        replaced = text.count(_REPLACEMENT)
        if replaced > self.max_replacement_share * len(text):
            return Dropped("replacement_characters", f"{replaced} of {len(text)} characters")
        return self._mojibake(text) or document

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING

    def _mojibake(self, text: str) -> Dropped | None:
        if text.isascii():
            return None
        rare = rare_syllables(text)
        if rare >= self.min_rare:
            hangul = "".join(SYLLABLES.findall(text))
            distinct = "".join(set(hangul))
            if (
                len(hangul) >= self.min_syllables
                and rare > self.max_rare_share * len(hangul)
                and rare_syllables(distinct) >= self.min_rare
                and rare_syllables(distinct) > self.max_rare_share * len(distinct)
            ):
                return Dropped("mojibake", f"{rare} of {len(hangul)} syllables are hardly used")
        if syllables_at_least(text) < self.max_latin_share * len(text):
            latin = len(_LATIN_SUPPLEMENT.findall(text))
            if latin > self.max_latin_share * len(text) and (found := _korean_behind(text)):
                return Dropped("mojibake", f"{found} read as Latin")
        return None


def _korean_behind(text: str) -> str | None:
    """The encoding in which the bytes of a text of Latin letters are Korean, if any."""
    for wrong in ("cp1252", "latin-1"):
        data = text.encode(wrong, "ignore")
        for right in ("utf-8", "cp949"):
            hangul = "".join(SYLLABLES.findall(data.decode(right, "ignore")))
            usual = len(hangul) - rare_syllables(hangul)
            if usual * (3 if right == "utf-8" else 2) > 0.3 * len(data) and usual > 0.9 * len(
                hangul
            ):
                return right
    return None
