"""Pages that lead elsewhere: lists of addresses, and lists of nothing but bullets."""

import re
from dataclasses import dataclass
from typing import ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts

_ADDRESS = re.compile(r"(?:https?://|www\.)[^\s<>\"'()\[\]]+", re.IGNORECASE)
_BULLETS = ("-", "*", "+", "•", "·", "‣", "◦", "▪", "■", "●", "○", "◆", "▶", "☞", "※")


@dataclass(frozen=True, slots=True)
class LinkList:
    """Drop texts that are mostly addresses, or long lists of short items.

    Attributes:
        max_address_share: of characters that may belong to addresses.
        max_bullet_share: of lines that may begin with a bullet, where there are ``min_lines``.
        min_lines: texts with fewer lines that are not empty are not judged by their bullets.
        max_mean_line: nor are those whose lines are longer than this on average: what stands in
            long items is prose.

    Drops:
        ``links``, ``bullets``.
    """

    name: ClassVar[str] = "links"

    max_address_share: float = 0.4
    max_bullet_share: float = 0.9
    min_lines: int = 20
    max_mean_line: float = 30.0

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        text = document.text
        if "://" in text or "www." in text:
            addresses = _ADDRESS.findall(text)
            inside = sum(map(len, addresses))
            if inside > self.max_address_share * len(text):
                return Dropped("links", f"{inside} of {len(text)} characters in addresses")
        if text.count("\n") + 1 >= self.min_lines:
            lines = [line for line in text.split("\n") if line.strip()]
            bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines)
            if (
                len(lines) >= self.min_lines
                and bullets > self.max_bullet_share * len(lines)
                and sum(map(len, lines)) <= self.max_mean_line * len(lines)
            ):
                return Dropped("bullets", f"{bullets} of {len(lines)} lines")
        return document

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING
