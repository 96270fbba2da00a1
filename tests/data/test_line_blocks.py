"""Files of lines in blocks, and what their JSON is."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wmtp.data import text_files
from wmtp.data.documents import UnusableError
from wmtp.data.json_lines import parse_object
from wmtp.data.text_files import read_blocks

CONTENTS = st.lists(st.sampled_from([b"a", b"\n", b"\r", b" ", b"bcd", b"\n\n"]), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENTS.map(b"".join), st.integers(1, 12), st.booleans())
def test_blocks_are_the_file_and_go_on_anywhere(
    tmp_path: Path, content: bytes, size: int, is_compressed: bool
) -> None:
    path = tmp_path / ("a.jsonl.gz" if is_compressed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if is_compressed else content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_files, "BLOCK_BYTES", size)
        blocks = list(read_blocks(path))
        assert b"".join(block.content for block in blocks) == content
        numbered = [found for block in blocks for found in block.lines()]
        with path.with_suffix(".plain").open("wb+") as plain:
            plain.write(content)
            plain.seek(0)
            lines = [(n, line) for n, line in enumerate(plain, 1) if line.strip()]
        assert numbered == lines
        for index, block in enumerate(blocks):
            assert list(read_blocks(path, block.end, block.next)) == blocks[index + 1 :]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b" \t", b"x", b"\x0b", b"{}", b"\xc2\xa0"])
@pytest.mark.parametrize("start", [b"", b" ", b"\xef\xbb\xbf", b"\t\n", b"\xc2\xa0"])
@pytest.mark.parametrize(
    "middle", [b'{"text": "a", "text": "b"}', b"{}", b"[1]", b'{"a": NaN}', b'{"a": 1', b"", b"{,}",
               b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 5000 + b"}"]
)  # fmt: skip
def test_an_object_is_what_json_says(start: bytes, middle: bytes, end: bytes) -> None:
    line = start + middle + end
    expected: object
    try:
        expected = json.loads(line.decode())
    except ValueError as error:
        expected = f"not JSON ({error})"
    else:
        if not isinstance(expected, dict):
            expected = f"not a JSON object ({type(expected).__name__})"
    try:
        found: object = parse_object(line)
    except UnusableError as error:
        found = str(error)
    assert repr(found) == repr(expected)
