"""Texts on which tokenizers disagree, if they disagree anywhere."""

import random

_PIECES = (
    *("한국어 문장입니다.", "띄어쓰기", "값을 넣으면", "ㅋㅋㅋ", "ㅠㅠ", "갂갃각", "서울특별시"),
    *("나랏말ᄊᆞ미", "듕귁에 달아", "ᄀᆞᄂᆞᆫ", "훈민정음"),  # old Hangul in letters
    *("가", "한글"),  # letters that compose
    *("🙂", "👩‍👩‍👧‍👦", "🇰🇷", "👍🏽", "❤️", "①②③", "½", "x²", "Ⅷ", "٣٤٥", "१२३"),
    *(
        "def f(x):",
        "    return x",
        "\tif a!=b:",
        "a+=1;",
        "}}",
        "//--",
        "<|im_end|>",
        "<|endoftext|>",
    ),
    *("#include <stdio.h>", 'print("hi")', "->", "::", "...", "!!!", "__init__", "x_1", "$100"),
    *("don't", "I'LL", "we've", "'S", "it's", "O'Neil", "'", "''", '"'),
    *("0", "7", "42", "123", "2024", "3.14159", "1,000,000", "0xFF", "1e-5"),
    *("the", " quick", "Brown", " fox", "HTTPServer", "naïve", "Zürich", "café", "ΑΒΓ", "привет"),
    *("中文", "日本語の文", "ไทย", "नमस्ते", "العربية", "עברית", "e\u0301", "n\u0303a"),
    *(
        " ",
        "  ",
        "   ",
        "        ",
        "\t",
        "\t\t",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        " \n",
        "\n  ",
        "\u00a0",
    ),
    *(
        "\u3000",
        "\u2003",
        "\u200b",
        "\ufeff",
        "\x0b",
        "\x1f",
        "\x7f",
        "～",
        "“”",
        "—",
        "…",
        "₩",
        "©",
    ),
)


def strange_texts(count: int = 1000, seed: int = 0) -> list[str]:
    """Korean, old Hangul, emoji, code, digits, marks and runs of white space, mixed at random.

    The same numbers give the same texts.
    """
    draws = random.Random(seed)
    return ["".join(draws.choices(_PIECES, k=draws.randint(1, 12))) for _ in range(count)]
