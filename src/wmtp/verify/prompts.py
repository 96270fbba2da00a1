"""Texts that exports are tried with: a few to continue, and a thousand to tokenize."""

import random
from typing import Final

DEFAULT_PROMPTS: Final = (
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "The capital of France is Paris, and the capital of Italy is",
    "한국어는 한국에서 쓰이는 언어이다. 서울은",
    "1, 2, 3, 4, 5, 6, 7, 8,",
)

STRINGS: Final = 1000

_WORDS = ("the", "Model", "predicts", "TOKENS", "ahead", "don't", "we'll", "naïve", "œuvre")
_CODE = (
    *("def f(x):", "    return x", "\tif a != b:", "{'k': [1, 2]}", "x += 1;", "// TODO", "<p>"),
    *("a->b", "0xFF", 'f"{x:.2f}"', "\\n", "#include <a.h>", "===", "&&", "lambda _: ..."),
)
_WHITESPACE = (
    *(" ", "  ", "    ", " " * 9, "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n"),
    *("\u00a0", "\u3000", "\u200b"),
)
_EMOJI = ("😀", "👍🏽", "👩\u200d👩\u200d👧", "🇰🇷", "❤\ufe0f", "🧪", "✨", "🫠")
_KOREAN = (
    *(
        "안녕하세요",
        "오늘은",
        "날씨가",
        "좋다",
        "한국어",
        "띄어쓰기",
        "없이",
        "쓰면",
        "될까?",
        "값이",
    ),
    *("닭", "뷁", "ㅋㅋㅋ", "ㅠㅠ", "가\u0301", "\u1112\u1161\u11ab"),
)
_OLD_HANGUL = (
    *("\u1112\u119e\u11ab", "\u1102\u119e\u110e\u1175", "나랏말\u110a\u119e미", "\u113c\u1161"),
    *("ㆍ", "ㆆ", "\ua960\u1161"),
)
_HANJA = ("漢字", "國語", "大韓民國", "訓民正音", "人間", "龜", "\U00020000", "\uf900")
_DIGITS = ("0", "7", "42", "2026", "3.14159", "1,000,000", "٣", "１２", "1e-5", "00000000", "½")


def strings_to_tokenize(count: int = STRINGS, seed: int = 0) -> list[str]:
    """Strings on which tokenizers like to differ, the same for the same seed.

    Korean, old Hangul, hanja, emoji, code, digits, runs of whitespace, and any characters of
    Unicode, mixed within a string; the first are short ones of one kind each.
    """
    draws = random.Random(seed)
    kinds = (_WORDS, _CODE, _WHITESPACE, _EMOJI, _KOREAN, _OLD_HANGUL, _HANJA, _DIGITS)
    pieces = [piece for kind in kinds for piece in kind]
    strings = pieces[:count]
    while len(strings) < count:
        parts = [
            _any_characters(draws) if draws.random() < 0.1 else draws.choice(draws.choice(kinds))
            for _ in range(draws.randint(1, 12))
        ]
        strings.append(draws.choice(("", " ", "", "\n")).join(parts))
    return strings


def _any_characters(draws: random.Random) -> str:
    """A few characters from the planes that have them, none of them half of a surrogate pair."""
    planes = ((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x52F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF))
    low, high = draws.choice(planes)
    return "".join(chr(draws.randint(low, high)) for _ in range(draws.randint(1, 4)))
