"""The plainest measures of a text: how many letters it has, among what, in how long words."""

import re
from dataclasses import dataclass
from typing import ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts
from wmtp.corpus.stages.hangul import LETTERS, size_of, syllables_at_least

_REPEATED = re.compile(r"(.)\1{3,}")


@dataclass(frozen=True, slots=True)
class Shape:
    """Drop texts that are too short, hardly letters, or without spaces between words.

    Attributes:
        min_letters: letters of any script that a text must have.
        min_letter_share: of characters other than spaces that must be letters.
        max_mean_eojeol: characters of an eojeol (what stands between spaces) on average, a run
            of one character counted once; Korean prose has 3 to 5,
            source code and reviews written without spaces up to 20.
        min_eojeol_characters: texts shorter than this are not judged by ``max_mean_eojeol``.

    Drops:
        ``too_short``, ``few_letters``, ``no_spaces``.

    Example:
        >>> from wmtp.corpus.document import Place
        >>> Shape()(Document("1", "1,234 5,678 가나다라마", "web", "", Place("a", 0))).text
        '1,234 5,678 가나다라마'
        >>> Shape()(Document("1", "굿!", "web", "", Place("a", 0)))
        Dropped(reason='too_short', detail='1 letters')
    """

    name: ClassVar[str] = "shape"

    min_letters: int = 4
    min_letter_share: float = 0.15
    max_mean_eojeol: float = 40.0
    min_eojeol_characters: int = 200

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        text = document.text
        surely = syllables_at_least(text)
        if surely < self.min_letters or surely < self.min_letter_share * len(text):
            letters = size_of(LETTERS, text)
            if letters < self.min_letters:
                return Dropped("too_short", f"{letters} letters")
            visible = len("".join(text.split()))
            if letters < self.min_letter_share * visible:
                return Dropped("few_letters", f"{letters} of {visible} characters")
        if len(text) >= self.min_eojeol_characters:
            eojeols = len(text.split())
            # laughter of any length is one character
            if (
                len(text) > (self.max_mean_eojeol + 1) * eojeols
                and len(_REPEATED.sub(r"\1", text)) > (self.max_mean_eojeol + 1) * eojeols
            ):
                return Dropped("no_spaces", f"{len(text)} characters in {eojeols} words")
        return document

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING
