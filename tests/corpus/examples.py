"""Documents for tests, and the real files where they are at hand."""

import json
import lzma
import os
from functools import cache
from pathlib import Path

import pytest

from wmtp.corpus.document import Document, Place

CLEAN = (
    "nsmc_reviews", "msdocs_ht", "libreoffice_help", "react_docs",
    "gimp_help", "debian_faq", "ud_kaist_sentences", "konlpy_law",
)  # fmt: skip

PROSE = (
    "가을이 오면 마을 앞 들판은 누렇게 물들고, 아이들은 허수아비 곁을 뛰어다니며 메뚜기를 잡았다. "
    "할머니는 마루에 앉아 고추를 다듬으셨고, 저녁이면 굴뚝마다 연기가 피어올랐다. "
    "그 무렵 아버지는 읍내 장터에서 사과를 파셨는데, 오시는 길에는 늘 작은 책을 한 권 사 오셨다."
)


def document(text: str) -> Document:
    return Document("1", text, "made", "CC0", Place("made.txt", 0))


@cache
def real_texts(name: str, most: int) -> tuple[str, ...]:
    """The first texts of a clean Korean file, or the test is skipped."""
    path = Path(os.environ.get("WMTP_DATA") or "absent") / "ko" / f"{name}.jsonl.xz"
    if not path.is_file():
        pytest.skip(f"WMTP_DATA has no ko/{name}.jsonl.xz")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return tuple(json.loads(line)["text"] for _, line in zip(range(most), file, strict=False))
