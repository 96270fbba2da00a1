"""MediaWiki's markup to plain text: wikitextparser, and what it leaves over."""

import re
from typing import Final

import wikitextparser

from wmtp.corpus.readers.reader import UnreadableError

LONGEST_WIKITEXT: Final = 1 << 21
"""Characters; MediaWiki itself refuses articles of more than 2 MiB."""

_MOST_MARKS: Final = {"[http": 5_000, "[//": 5_000, "<": 20_000, "''": 40_000}
_MOST_MARKS_OF_ALL: Final = 60_000
_DEEPEST_BRACES: Final = 100
"""Pages of authors have far less; beyond, the parser takes minutes instead of milliseconds."""

_BRACES = re.compile(r"\{\{|\}\}")
_OPENED = re.compile(
    r"<(ref|gallery|math|syntaxhighlight|source|timeline|score|graph|imagemap|templatestyles)\b"
    r"[^<>]*>|<!--",
    re.IGNORECASE,
)
_INVISIBLE = re.compile(
    r"\[\[\s*(?:분류|Category)\s*:[^\[\]]*\]\]|__[A-Z]{3,20}__|__목차(?:없음|숨김)?__",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(={1,6})[ \t]*(.+?)[ \t]*\1[ \t]*")
_LIST_MARK = re.compile(r"^[*#:;]+[ \t]*")
_LINES_APART = re.compile(r"\n{3,}")


def plain_text(wikitext: str) -> str:
    r"""The text that readers of a page see, without templates, references, files and categories.

    Headings are lines of their own, those with nothing below them left out.

    Raises:
        UnreadableError: the page is longer than MediaWiki permits, or cannot be parsed.

    Example:
        >>> plain_text("'''가'''는 [[나|다]]이다.<ref>라</ref>\n== 마 ==\n[[분류:바]]")
        '가는 다이다.'
    """
    if len(wikitext) > LONGEST_WIKITEXT:
        raise UnreadableError("page over 2 MiB")
    prose = _INVISIBLE.sub("", _without_elements(wikitext))
    _check_marks(prose)
    try:
        text = wikitextparser.parse(prose).plain_text()
    except (ValueError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError("markup cannot be read") from error
    return _LINES_APART.sub("\n\n", "\n".join(_lines(text))).strip()


def _without_elements(wikitext: str) -> str:
    """The text without comments, references and other elements that hold no prose."""
    kept, done = [], 0
    unclosed: set[str] = set()
    while opened := _OPENED.search(wikitext, done):
        kept.append(wikitext[done : opened.start()])
        done = opened.end()
        if opened[0].endswith("/>"):
            continue
        closing = f"</{opened[1].lower()}>" if opened[1] else "-->"
        # what is not closed once is not closed later either, and is looked for once
        end = -1 if closing in unclosed else _find(wikitext, closing, done)
        if end < 0:
            unclosed.add(closing)
        else:
            done = end + len(closing)
    return "".join([*kept, wikitext[done:]])


def _find(text: str, closing: str, start: int) -> int:
    found = text.find(closing, start)
    return found if found >= 0 else text.find(closing.upper(), start)


def _check_marks(text: str) -> None:
    """Refuse what no author writes, and what the parser would take minutes over.

    Raises:
        UnreadableError: there are too many marks, or braces nested too deeply.
    """
    if any(text.count(mark) > most for mark, most in _MOST_MARKS.items()):
        raise UnreadableError("too much markup")
    if text.count("{{") + text.count("[[") + text.count("{|") > _MOST_MARKS_OF_ALL:
        raise UnreadableError("too much markup")
    depth = 0
    for brace in _BRACES.finditer(text):
        depth = max(0, depth + (1 if brace[0] == "{{" else -1))
        if depth > _DEEPEST_BRACES:
            raise UnreadableError("markup nested too deeply")


def _lines(text: str) -> list[str]:
    """The lines without marks of lists and headings; a heading goes where no text follows it."""
    kept: list[str] = []
    headings: list[tuple[int, str]] = []
    for line in text.split("\n"):
        line = line.rstrip()
        if heading := _HEADING.fullmatch(line):
            level = len(heading[1])
            headings = [(other, title) for other, title in headings if other < level]
            headings.append((level, heading[2]))
            continue
        line = _LIST_MARK.sub("", line)
        if line and headings:
            kept += [part for _, title in headings for part in ("", title)]
            headings = []
        kept.append(line)
    return kept
