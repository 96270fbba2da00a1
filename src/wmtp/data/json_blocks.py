"""Blocks of JSONL lines become documents, in whichever process."""

from typing import Any, NamedTuple

from wmtp.data.documents import BadLine, BadLines, Document, TokenDocument, UnusableError
from wmtp.data.json_lines import parse_object, parse_row
from wmtp.data.splits import Split, in_split
from wmtp.data.text_files import LONGEST_LINE_BYTES, LineBlock


class ParsedBlock(NamedTuple):
    """What the lines of a block turned out to be.

    Attributes:
        documents: those of the split.
        read: lines that are not blank.
        bad: lines that are no documents.
    """

    documents: list[Document | TokenDocument]
    read: int
    bad: list[BadLine]


def parse_block(block: LineBlock, split: Split) -> ParsedBlock:
    """The documents of a block's lines."""
    documents: list[Document | TokenDocument] = []
    bad, read = BadLines(), 0
    for number, line in block.lines():
        read += 1
        name = f"{block.path}:{number}"
        try:
            document = parse_row(object_of(line), name)
        except UnusableError as error:
            bad.note(name, error)
        else:
            if split == "all" or in_split(_key(document), split):
                documents.append(document)
    return ParsedBlock(documents, read, bad.lines)


def object_of(line: bytes | None) -> dict[str, Any]:
    """The JSON object on a line, as ``read_lines`` gives it.

    Raises:
        UnusableError: it is too long or no object.
    """
    if line is None:
        raise UnusableError("line too long", f"over {LONGEST_LINE_BYTES} bytes")
    return parse_object(line)


def _key(document: Document | TokenDocument) -> str:
    """What decides its split: equal documents are on the same side."""
    if isinstance(document, TokenDocument):
        return str(document.ids)
    return "".join(segment.text for segment in document.segments)
