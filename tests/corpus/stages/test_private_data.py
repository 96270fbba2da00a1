import pytest

from tests.corpus.examples import PROSE, document
from wmtp.corpus.stages import PrivateData
from wmtp.corpus.stages.private_data import REPLACEMENTS

# numbers of nobody: made with the check digits of their kind
RESIDENT = "800101-1234560"
NEWBORN = "210315-3123456"
FOREIGNER = "800101-5234563"
CARD = "4111-1111-1111-1111"

REPLACED = [
    ("resident_number", f"주민번호는 {RESIDENT}입니다", RESIDENT),
    ("resident_number", "주민번호 8001011234560", "8001011234560"),
    ("resident_number", "주민번호 800101 1234560.", "800101 1234560"),
    ("resident_number", f"(2021년생 {NEWBORN})", NEWBORN),
    ("foreigner_number", f"외국인등록번호:{FOREIGNER}", FOREIGNER),
    ("card", f"카드 {CARD} 유효기간 12/28", CARD),
    ("card", "카드 4111 1111 1111 1111로 결제", "4111 1111 1111 1111"),
    ("card", "카드번호=5555555555554444", "5555555555554444"),
    ("card", "아멕스 3782-822463-10005", "3782-822463-10005"),
    ("email", "메일 gildong.hong@naver.com으로", "gildong.hong@naver.com"),
    ("email", "부탁드림..hong_1@mail.snu.ac.kr", "hong_1@mail.snu.ac.kr"),
    ("email", "<a+b@korea.kr>.", "a+b@korea.kr"),
    ("phone", "연락처 010-1234-5678번", "010-1234-5678"),
    ("phone", "01012345678로 문자", "01012345678"),
    ("phone", "010 1234 5678, 010.1234.5678", "010 1234 5678"),
    ("phone", "옛 번호 016-123-4567", "016-123-4567"),
    ("phone", "(02) 788-1234", "(02) 788-1234"),
    ("phone", "☎02-788-1234(대표)", "02-788-1234"),
    ("phone", "전화: 051)123-4567", "051)123-4567"),
    ("phone", "070-1234-5678", "070-1234-5678"),
    ("phone", "+82-10-1234-5678", "+82-10-1234-5678"),
    ("phone", "+82 2 788 1234", "+82 2 788 1234"),
    ("phone", "+82 (0)10-1234-5678", "+82 (0)10-1234-5678"),
    ("account", "국민은행 123456-01-123456 홍길동", "123456-01-123456"),
    ("account", "계좌번호: 110-123-456789", "110-123-456789"),
    ("account", "농협 3020123456711로 입금", "3020123456711"),
    ("driver_licence", "운전면허번호 11-12-123456-01", "11-12-123456-01"),
    ("driver_licence", "면허: 서울 12-345678-90".replace("12-345678", "11-12-345678"),
     "11-12-345678-90"),
    ("passport", "여권번호 M12345678 소지", "M12345678"),
    ("passport", "여권 M123A4567", "M123A4567"),
]  # fmt: skip

STAYS = [
    "2000000원, 1,234,567,890원, 12억 3456만 7890원",
    "2010-11-12 13:45:59, 2010. 11. 12., 20101112",
    "2010-11-12-13-45",
    "민법 제750조, 제2조제1항제3호, 법률 제10-1234호",
    "3.141592653589793, 0.10123456789, 1234.5678-9012.3456",
    "ISBN 978-89-7012-345-6, ISBN 9788970123456",
    "주민번호가 아닌 800101-1234561",  # its check digit is wrong
    "주민번호가 아닌 801301-1234560",  # there is no thirteenth month
    "주민번호가 아닌 8001011234561, 1800101-1234560, 800101-12345601",
    "2103153123457",  # a child's number counts only with its sign
    "800101-1******",
    "카드가 아닌 4111-1111-1111-1112",
    "카드가 아닌 1234-5678-9012-3452",  # right by Luhn, of no issuer
    "카드가 아닌 41111111111111111111",
    "a0eebc99-9c0b-4ef8-bb6d-4111111111111111, 4111-1111-1111-1111-1",
    "react@18.2.0, @app.route, @outlook.com, @media screen",
    "git@github.com:org/repo.git, https://user@host.co.kr/path",
    "user@example.com, root@localhost, a@b.test, file@name.txt, icon@2x.png",
    "고객센터 1588-1234, 080-123-4567, 1544 5678",
    "우편번호 06234, 등번호 010번, 버스 02-1",
    "192.168.010.1234, 10.0.0.1:8080, v0.10.1234.5678",
    "모델 SM-G998N, LG 27GL850-B, 010A-1234-5678, A010-1234-5678",
    "사업자등록번호 123-45-67890",
    "국민 10명 중 3명은 2010-11-12에, 하나은행 12,345,678,901원",
    "은행 금리 3.25-4.75%, 우리 2010.11.12. 신한 2010-2011",
    "면허 12-345, 면허시험 2010-11-12",
    "여권 2장, 여권 지수 1234567, 비행기 M12345678",
    "0x0101234567, #01012345678f",
    "스코어 02-13, 전적 010-3-4, 1-2-3-4-5-6-7-8-9-0",
    "국번 02-123, 시간 01:00-02:30, 010-12345-67890",
    "",
]


@pytest.mark.parametrize(("kind", "text", "found"), REPLACED)
def test_what_names_a_person_gives_way_to_a_word(kind: str, text: str, found: str) -> None:
    changed, counts = PrivateData().counted(document(text))
    assert REPLACEMENTS[kind] in changed.text
    assert found not in changed.text
    assert text.startswith(changed.text.split("<")[0])
    assert counts[kind] >= 1
    # nothing else went: what is left is what stood around
    difference = len(text.encode()) - len(changed.text.encode())
    assert difference == sum(n for name, n in counts.items() if name.endswith("_bytes"))
    only = changed.text
    for each in REPLACEMENTS.values():
        only = only.replace(each, "|")
    assert all(part in text for part in only.split("|"))


@pytest.mark.parametrize("text", STAYS)
def test_what_names_nobody_stays(text: str) -> None:
    given = document(text)
    assert PrivateData().counted(given) == (given, {})


@pytest.mark.parametrize(("kind", "text", "found"), REPLACED)
def test_a_kind_that_is_not_asked_for_stays(kind: str, text: str, found: str) -> None:
    """Negative control: every replacement above is the work of its own kind."""
    setting = {
        "foreigner_number": "resident_number",
        "driver_licence": "papers",
        "passport": "papers",
    }.get(kind, kind)
    off = PrivateData(**{setting: False})
    assert REPLACEMENTS[kind] not in off(document(text)).text


def test_all_in_one_text() -> None:
    text = f"{PROSE} {RESIDENT} {CARD} a@korea.kr 010-1234-5678, 국민은행 123456-01-123456 {PROSE}"
    changed, counts = PrivateData().counted(document(text))
    assert changed.text == (
        f"{PROSE} <주민등록번호> <카드번호> <이메일> <전화번호>, 국민은행 <계좌번호> {PROSE}"
    )
    kinds = ("resident_number", "card", "email", "phone", "account")
    assert {kind: counts[kind] for kind in kinds} == dict.fromkeys(kinds, 1)
    assert PrivateData()(changed) is changed
