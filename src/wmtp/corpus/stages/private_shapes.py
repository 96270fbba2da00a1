"""The shapes that private numbers have, and the check digits that tell them from other numbers."""

import re
from collections.abc import Callable
from typing import TypeAlias

Put: TypeAlias = Callable[[str, str], str]
"""Takes the kind and what was found, gives what to write instead."""

# seven digits, with at most two signs between any two of them, or a letter as passports have
_LONG_NUMBER = re.compile(r"[0-9](?:[-. )~–]{0,2}[0-9]){6}|[A-Z][0-9]{3}[A-Z][0-9]{4}")

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+/:=&-])(?<![A-Za-z0-9]\.)"
    r"(?P<user>[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}+)@"
    r"(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,6}[A-Za-z]{2,24})"
    r"(?![A-Za-z0-9-]|\.[A-Za-z0-9]|:[A-Za-z0-9~/]|[(/])"
)
# example domains of RFC 2606 and 6761, and names of files
_NO_HOSTS = re.compile(
    r"(?:^|\.)(?:example(?:\.(?:com|net|org|co\.kr))?|test|invalid|localhost|local"
    r"|txt|png|jpe?g|gif|svg|exe|dll|jar|json|xml|html?|css|js|tsx?|yaml|yml)$",
    re.IGNORECASE,
)

_DATE = r"(?P<year>[0-9]{2})(?P<month>0[1-9]|1[0-2])(?P<day>0[1-9]|[12][0-9]|3[01])"
# no digit, letter or sign of a longer number may touch it; a Korean particle may follow
_BEFORE = r"(?<![0-9A-Za-z_])(?<![0-9A-Za-z][-.,/])"
_AFTER = r"(?![0-9A-Za-z_])(?![-./][0-9])(?!,[0-9]{3})"
_RESIDENT = re.compile(rf"{_BEFORE}{_DATE}(?P<sign> ?[-–] ?| |)(?P<rest>[1-8][0-9]{{6}}){_AFTER}")
_RESIDENT_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)

# 4-4-4-4 and 4-6-5, with one sign throughout or none
_CARD = re.compile(
    rf"{_BEFORE}(?:[2-69][0-9]{{3}}(?P<sign>[- ]?)[0-9]{{4}}(?P=sign)[0-9]{{4}}(?P=sign)[0-9]{{4}}"
    rf"|3[47][0-9]{{2}}(?P<sign2>[- ]?)[0-9]{{6}}(?P=sign2)[0-9]{{5}}){_AFTER}"
)
# ranges that issuers have; 9 is used within Korea only
_ISSUERS = re.compile(
    r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|35(?:2[89]|[3-8])|36|60|6[245]|9[0-9]{3}"
)

_MOBILE = r"01[016789][-. )~–]{0,2}[0-9]{3,4}[-. ~–]{0,2}[0-9]{4}"
_AREA = r"(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50[2-8]?)"
_LANDLINE = rf"(?:\(0{_AREA}\) ?|0{_AREA}(?:[-.)~–] ?| ))[1-9][0-9]{{2,3}}[-.~– ][0-9]{{4}}"
_ABROAD = (
    rf"\+ ?82[-. )]{{0,2}}(?:\(0\) ?)?0?(?:1[016789]|{_AREA})[-. )]{{0,2}}"
    r"[0-9]{3,4}[-. ]?[0-9]{4}"
)
_PHONE = re.compile(
    rf"(?<![0-9A-Za-z_+])(?<![0-9][-.,/:])(?:{_MOBILE}|{_LANDLINE}|{_ABROAD}){_AFTER}"
)

_BANKS = (
    "국민|신한|우리|하나|농협|기업|씨티|제일|수협|신협|우체국|새마을금고|카카오뱅크|카뱅|케이뱅크|토스뱅크|"
    "산업|부산|대구|광주|전북|경남|제주|외환|축협|KB|NH|IBK|SC|KEB"
)
_ACCOUNT_WORD = (
    rf"(?:계좌(?: ?번호)?|예금주|입금(?:처|계좌)?|송금|후원(?: ?계좌)?|(?:{_BANKS})(?: ?은행)?)"
)
_ACCOUNT = re.compile(
    rf"(?P<before>{_ACCOUNT_WORD}[^0-9\n]{{0,20}}?)(?<![0-9A-Za-z.,-])"
    rf"(?P<number>[0-9]{{2,6}}(?:[- ][0-9]{{2,8}}){{1,4}}|[0-9]{{11,14}}){_AFTER}"
)
_ACCOUNT_HINTS = (
    *("계좌", "은행", "뱅크", "입금", "송금", "예금주", "후원", "농협", "금고", "우체국"),
    *("신한", "국민", "우리", "하나", "기업", "수협", "신협", "카뱅"),
)

_PASSPORT = re.compile(
    r"(?P<before>(?:여권|[Pp]assport|PASSPORT)[^0-9\n]{0,20}?)(?<![0-9A-Za-z])"
    r"(?P<number>[MSRODG](?:[0-9]{8}|[0-9]{3}[A-Z][0-9]{4}))(?![0-9A-Za-z])"
)
_LICENCE = re.compile(
    r"(?P<before>면허[^0-9\n]{0,20}?(?:[가-힣]{2} ?)?)(?<![0-9A-Za-z-])"
    r"(?P<number>(?:1[1-9]|2[0-8])[- ]?[0-9]{2}[- ]?[0-9]{6}[- ]?[0-9]{2})(?![0-9-])"
)


def has_long_number(text: str) -> bool:
    """Whether any of the numbers below can be in the text; a cheap first look."""
    return _LONG_NUMBER.search(text) is not None


def replace_emails(text: str, put: Put) -> str:
    """Addresses, but not those at example domains nor ``git@host:path``."""

    def replacement(found: re.Match[str]) -> str:
        if _NO_HOSTS.search(found["host"]) or ".." in found["user"]:
            return found[0]
        return put("email", found[0])

    return _EMAIL.sub(replacement, text)


def replace_resident_numbers(text: str, put: Put) -> str:
    """Numbers of residents and foreigners whose check digit is right.

    Numbers given since October 2020 have no check digit: of a child born since then, one written
    with its sign is taken for what it looks like.
    """

    def replacement(found: re.Match[str]) -> str:
        rest = found["rest"]
        foreigner = rest[0] in "5678"
        if not (
            _has_resident_check_digit(found["year"] + found["month"] + found["day"] + rest)
            or (
                found["sign"].strip()
                and rest[0] in "3478"
                and 2010 <= int(found["year"] + found["month"]) <= 3912
            )
        ):
            return found[0]
        return put("foreigner_number" if foreigner else "resident_number", found[0])

    return _RESIDENT.sub(replacement, text)


def _has_resident_check_digit(digits: str) -> bool:
    """Whether the last of thirteen digits is the one that the others ask for.

    Example:
        >>> _has_resident_check_digit("8001011234560"), _has_resident_check_digit("8001011234561")
        (True, False)
    """
    total = sum(weight * int(d) for weight, d in zip(_RESIDENT_WEIGHTS, digits, strict=False))
    # a foreigner's is larger by 2
    asked = (11 - total % 11 + (2 if digits[6] in "5678" else 0)) % 10
    return asked == int(digits[12])


def replace_cards(text: str, put: Put) -> str:
    """Numbers of cards: a known issuer, and right by Luhn's formula."""

    def replacement(found: re.Match[str]) -> str:
        digits = re.sub(r"[- ]", "", found[0])
        local = digits[0] == "9" and not found["sign"]
        if local or not _ISSUERS.match(digits) or not passes_luhn(digits):
            return found[0]
        return put("card", found[0])

    return _CARD.sub(replacement, text)


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others.

    Source:
        ISO/IEC 7812-1, annex B.

    Example:
        >>> passes_luhn("4111111111111111"), passes_luhn("4111111111111112")
        (True, False)
    """
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def replace_papers(text: str, put: Put) -> str:
    """Passports and driver's licences after their word."""
    if "여권" in text or "assport" in text or "PASSPORT" in text:
        text = _PASSPORT.sub(lambda m: m["before"] + put("passport", m["number"]), text)
    if "면허" in text:
        text = _LICENCE.sub(lambda m: m["before"] + put("driver_licence", m["number"]), text)
    return text


def replace_accounts(text: str, put: Put) -> str:
    """Accounts of 10 to 16 digits after a bank's name or a word such as 계좌."""
    if not any(hint in text for hint in _ACCOUNT_HINTS):
        return text

    def replacement(found: re.Match[str]) -> str:
        number = found["number"]
        digits = sum(map(str.isdigit, number))
        # a phone's shape stays a phone, even beside a bank's name
        if not 10 <= digits <= 16 or _PHONE.fullmatch(number):
            return found[0]
        return found["before"] + put("account", number)

    return _ACCOUNT.sub(replacement, text)


def replace_phones(text: str, put: Put) -> str:
    """Phones as they are written in Korea, or with +82."""
    return _PHONE.sub(lambda found: put("phone", found[0]), text)
