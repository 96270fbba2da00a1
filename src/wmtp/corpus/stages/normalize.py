"""NFC, newlines and control characters: the one change to a text that all documents share."""

import re
import unicodedata
from dataclasses import dataclass, replace
from typing import ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts

# all that may have to go: C0 but tab and newline, DEL, C1, lone surrogates
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NEWLINE = re.compile("\r\n?|[\x0b\x0c\x85]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]+")
_SURROGATE = re.compile("[\ud800-\udfff]+")
_BYTE_ORDER_MARK = "\ufeff"
# NFC sorts each run of combining marks in a time that grows with the square of its length
_MARKS = re.compile(
    "[" + "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(c)) + "]{500}"
)
_HARMLESS_LENGTH = 20_000


@dataclass(frozen=True, slots=True)
class Normalize:
    r"""Bring a text to NFC with ``\n`` as its only newline and no control characters but tab.

    Nothing else is touched: digits, laughter, old Hangul, hanja, emoji with their joiners, lone
    jamo and spaces stay. NFC itself replaces compatibility hanja (U+F914) by the unified ones
    (U+6A02); that and every other change is counted in bytes of UTF-8. A text of more than 20,000
    characters with 500 combining marks in a row, of which no word has ten, is dropped: normalizing
    it could take for ever.

    Drops:
        ``endless_marks``.

    Example:
        >>> normalize_text("2000000원\r\nㅋㅋㅋ\x00")
        ('2000000원\nㅋㅋㅋ', {'newline_bytes': 1, 'control_bytes': 1})
    """

    name: ClassVar[str] = "normalize"

    def __call__(self, document: Document) -> Document | Dropped:
        """The document with its text normalized, or why it is dropped."""
        return self.counted(document)[0]

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same, and the counts of ``normalize_text``."""
        if len(document.text) > _HARMLESS_LENGTH and (marks := _MARKS.search(document.text)):
            return Dropped("endless_marks", f"at character {marks.start()}"), NOTHING
        text, counts = normalize_text(document.text)
        return (document if text is document.text else replace(document, text=text)), counts


def normalize_text(text: str) -> tuple[str, Counts]:
    r"""A text in NFC, without control characters, with ``\n`` between lines.

    ``\r\n``, ``\r``, vertical tab, form feed and U+0085 become ``\n``; a byte order mark at the
    start, other control characters but tab, and lone surrogates (which UTF-8 cannot hold) go.

    Returns:
        The text, and by how many bytes of UTF-8 each rule made it shorter: ``newline_bytes``,
        ``control_bytes``, ``surrogate_bytes``, ``byte_order_mark_bytes``, ``nfc_bytes``. Their sum
        is the difference in length. A rule that changed the text without changing its length
        counts 0, one that made it longer (NFC may) a negative number; a rule that changed
        nothing is absent. A lone surrogate counts as the three bytes that it would take.
    """
    if (
        not _SUSPECT.search(text)
        and unicodedata.is_normalized("NFC", text)
        and not text.startswith(_BYTE_ORDER_MARK)
    ):
        return text, NOTHING
    counts: dict[str, int] = {}
    for name, pattern, put in (
        ("surrogate_bytes", _SURROGATE, ""),
        ("newline_bytes", _NEWLINE, "\n"),
        ("control_bytes", _CONTROL, ""),
    ):
        text = _counted(counts, name, text, pattern.sub(put, text))
    text = _counted(counts, "byte_order_mark_bytes", text, text.lstrip(_BYTE_ORDER_MARK))
    # last, because jamo that a control character kept apart may now form a syllable
    text = _counted(counts, "nfc_bytes", text, unicodedata.normalize("NFC", text))
    return text, counts


def _counted(counts: dict[str, int], name: str, before: str, after: str) -> str:
    if after != before:
        counts[name] = _size(before) - _size(after)
    return after


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
