"""Cutting JSON by its brackets gives what parsing all of it gives."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp.corpus.readers import json_array
from wmtp.corpus.readers.json_array import cut_array, parse_json
from wmtp.corpus.readers.json_path import parse_path, texts_at
from wmtp.corpus.readers.reader import RawRecord, Start, UnreadableError

scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "document", 'q"', "\\"]), inner, max_size=3)
    ),
    max_leaves=12,
)
containers = values.filter(lambda value: isinstance(value, dict | list))


@settings(max_examples=60, deadline=None)
@given(
    elements=st.lists(containers, max_size=4),
    before=values,
    after=values,
    ascii_only=st.booleans(),
    chunk=st.sampled_from([1, 3, 1000]),
)
def test_elements_are_those_of_the_array_at_the_path(
    elements: list[Any], before: Any, after: Any, ascii_only: bool, chunk: int
) -> None:
    whole = {"x": before, "document": {"list": elements}, "y": after, "z": {"document": [{"n": 1}]}}
    content = json.dumps(whole, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK_BYTES", chunk)
        records = list(cut_array(io.BytesIO(content), ("document", "list", "[]"), Start(), 0))
        found = [json.loads(r.content) for r in records if isinstance(r, RawRecord)]
        assert found == elements
        for i, record in enumerate(records):
            assert isinstance(record, RawRecord)
            assert record.start is not None
            rest = io.BytesIO(content[record.start.offset :])
            again = cut_array(rest, ("document", "list", "[]"), record.start, record.start.offset)
            assert list(again) == records[i:]


def test_an_array_of_scalars_has_no_records() -> None:
    assert list(cut_array(io.BytesIO(b'["a", 1, null]'), ("[]",), Start(), 0)) == []


@pytest.mark.parametrize("path", ["", ".", "a..b", "a[", "a[0]", "[]x", ".a", "a."])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no path such as"):
        parse_path(path)


def test_a_path_that_leads_elsewhere_is_told() -> None:
    assert list(texts_at({"a": None}, ("a", "[]", "b"))) == []
    for value, steps, told in (
        ({"a": 1}, ("a",), "text"), ({"a": {}}, ("a", "[]"), "an array"), ([], ("a",), "an object"),
    ):  # fmt: skip
        with pytest.raises(UnreadableError, match=f"should be {told} is not"):
            list(texts_at(value, steps))
    with pytest.raises(UnreadableError, match="not JSON"):
        parse_json(b"[1,]")
