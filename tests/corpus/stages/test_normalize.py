import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.examples import document
from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages import Normalize
from wmtp.corpus.stages.normalize import normalize_text

STAYS = [
    "2000000원", "1,234.56", "ㅋㅋㅋㅋㅋ ㅠㅠ ㅎㅎ", "나랏말ᄊᆞ미 듕귁에 달아", "漢字와 國語",
    "👨‍👩‍👧‍👦 ❤️ 🇰🇷",
    "\tif x:\n\t\treturn", "제1조(목적) ① 이 법은", "ㄱㄴㄷ ㅏㅑ", "a b  c", "½ ㎏ № ①", "<s>", "",
]  # fmt: skip

# what Korean text is made of, and what must not be in it
PIECES = st.one_of(
    st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=5),
    st.text(st.characters(min_codepoint=0x1100, max_codepoint=0x11FF), max_size=4),
    st.text(st.characters(min_codepoint=0x3131, max_codepoint=0x318E), max_size=4),
    st.text(st.characters(min_codepoint=0xA960, max_codepoint=0xA97C), max_size=3),
    st.text(st.characters(min_codepoint=0xD7B0, max_codepoint=0xD7FB), max_size=3),
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), max_size=3),
    st.text(st.characters(min_codepoint=0xF900, max_codepoint=0xFAFF), max_size=3),
    st.text(st.characters(), max_size=5),
    st.sampled_from([*STAYS, "\r\n", "\r", "\x0b", "\x0c", "\x85", "\x00", "\x1b", "\x9f", "\ufeff",
                     "\ud800", "\udfff", "e\u0301", "\u1100\u1161\u11a8", "\u200d", "\ufe0f"]),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(c in rest for c in part)


@pytest.mark.parametrize("text", STAYS)
def test_what_people_write_stays(text: str) -> None:
    assert normalize_text(text) == (unicodedata.normalize("NFC", text), {})


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_kept_text_is_part_of_nfc_and_every_byte_is_counted(text: str) -> None:
    kept, counts = normalize_text(text)
    assert unicodedata.is_normalized("NFC", kept)
    assert normalize_text(kept) == (kept, {})
    lines = text.replace("\r\n", "\n")
    for newline in "\r\x0b\x0c\x85":
        lines = lines.replace(newline, "\n")
    gone = [c for c in lines if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n"]
    stays = "".join(c for c in lines if c not in gone).lstrip("\ufeff")
    assert kept == unicodedata.normalize("NFC", stays)
    # a control character between two jamo keeps them apart in NFC(input), and not in the text
    if unicodedata.normalize("NFC", lines).translate(dict.fromkeys(map(ord, gone))) == kept:
        assert is_subsequence(kept, unicodedata.normalize("NFC", lines))
    size = len(text.encode("utf-8", "surrogatepass"))
    assert size - sum(counts.values()) == len(kept.encode())


@pytest.mark.parametrize(
    ("text", "kept", "counts"),
    [
        ("가\r\n나\r다\x0c라", "가\n나\n다\n라", {"newline_bytes": 1}),
        ("가\x00나\x1b[0m다\x7f\x80", "가나[0m다", {"control_bytes": 5}),
        ("\ufeff가\ufeff나", "가\ufeff나", {"byte_order_mark_bytes": 3}),
        ("\ufeff\x00\ufeff가", "가", {"control_bytes": 1, "byte_order_mark_bytes": 6}),
        ("가\ud800나", "가나", {"surrogate_bytes": 3}),
        ("\u1112\u1161\u11ab", "한", {"nfc_bytes": 6}),
        ("\u1112\x00\u1161", "하", {"control_bytes": 1, "nfc_bytes": 3}),
        ("\uf914", "樂", {"nfc_bytes": 0}),
        ("\u0958", "\u0915\u093c", {"nfc_bytes": -3}),
    ],
)
def test_what_is_changed_is_counted(text: str, kept: str, counts: dict[str, int]) -> None:
    assert normalize_text(text) == (kept, counts)


def test_stage_gives_the_same_document_where_nothing_changed() -> None:
    plain = document("그대로")
    assert Normalize()(plain) is plain
    changed, counts = Normalize().counted(document("가\r\n"))
    assert isinstance(changed, Document)
    assert changed.text == "가\n"
    assert dict(counts) == {"newline_bytes": 1}


def test_a_text_that_would_take_for_ever_is_dropped_at_once() -> None:
    marks = "\u0301\u0316" * 500_000
    started = time.process_time()
    assert Normalize()(document("가" + marks)) == Dropped("endless_marks", "at character 1")
    assert time.process_time() - started < 1
    # negative controls: a short run of marks, and a long text with many short ones
    for text in ("가" + marks[:100], "e\u0316\u0301" * 20_000):
        kept = Normalize()(document(text))
        assert isinstance(kept, Document)
        assert kept.text == unicodedata.normalize("NFC", text)
