"""Pages that hold nothing but notices: rights, terms, missing pages, sign-in forms."""

from dataclasses import dataclass
from typing import ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts

NOTICES = (
    "무단 전재",
    "무단전재",
    "무단 복제를 금",
    "무단복제를 금",
    "재배포 금지",
    "재배포를 금",
    "저작권자 ⓒ",
    "저작권자ⓒ",
    "저작권자 ©",
    "저작권자(c)",
    "ll rights reserved",
    "LL RIGHTS RESERVED",
    "사업자등록번호",
    "사업자 등록번호",
    "통신판매업",
    "개인정보처리방침",
    "개인정보 처리방침",
    "개인정보취급방침",
    "개인정보 취급방침",
    "이메일무단수집거부",
    "이메일주소무단수집거부",
    "청소년보호책임자",
    "청소년보호정책",
    "쿠키를 사용합니다",
    "로그인이 필요합니다",
    "로그인 하시겠습니까",
    "로그인이 필요한 서비스",
    "페이지를 찾을 수 없습니다",
    "존재하지 않는 페이지",
    "접근 권한이 없습니다",
    "자바스크립트를 사용",
    "자바스크립트를 활성화",
    "JavaScript를 활성화",
    "JavaScript를 사용하도록 설정",
    "orem ipsum",
)
"""What lines that say nothing of their page's subject contain."""

# each notice has one of these, so that most texts are asked for few words
_ROOTS = (
    *("무단", "재배포", "저작권자", "ights reserved", "IGHTS RESERVED", "등록번호", "통신판매업"),
    *(
        "개인정보",
        "청소년보호",
        "쿠키를",
        "로그인",
        "페이지",
        "접근 권한",
        "스크립트",
        "JavaScript",
    ),
    "orem ipsum",
)


@dataclass(frozen=True, slots=True)
class Boilerplate:
    """Drop texts of which most characters stand in lines that are notices.

    A line is a notice if it contains one of ``NOTICES`` and is no longer than a notice is; a
    paragraph that speaks of such things is none.

    Attributes:
        max_share: of characters that may stand in notices.
        longest_notice: characters; a longer line is taken for a paragraph.

    Drops:
        ``boilerplate``.
    """

    name: ClassVar[str] = "boilerplate"

    max_share: float = 0.5
    longest_notice: int = 150

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        text = document.text
        if not any(root in text for root in _ROOTS):
            return document
        inside = sum(
            len(line)
            for line in text.split("\n")
            if len(line) <= self.longest_notice and any(notice in line for notice in NOTICES)
        )
        if inside > self.max_share * len(text.strip()):
            return Dropped("boilerplate", f"{inside} of {len(text)} characters")
        return document

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING
