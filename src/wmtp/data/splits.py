"""Which documents are for training and which are held out."""

import hashlib
from typing import Literal

Split = Literal["all", "train", "validation", "test", "prompt"]

VALIDATION_SHARE = 0.05
CONTEST_VALIDATION_SHARE = 0.1
"""Of programs: they are fewer than documents elsewhere, and pairs of them are held out."""

# By ``task_id``, as Austin et al. 2021 (arXiv:2108.07732) divide them.
MBPP_SPLITS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}


def in_split(key: str, split: Split, validation_share: float = VALIDATION_SHARE) -> bool:
    """Whether the document of that key is in a split; the same on every machine, for ever.

    Example:
        >>> sum(in_split(f"document {i}", "validation") for i in range(1000))
        53
        >>> sum(in_split(f"document {i}", "train") for i in range(1000))
        947
    """
    if split == "all":
        return True
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    is_validation = int.from_bytes(digest, "big") < validation_share * 2**64
    return is_validation == (split == "validation")


def cut_to_split(text: str, split: Split) -> str:
    r"""The part of a single text that is in a split: validation is its last 5 %, in whole lines.

    Example:
        >>> text = "".join(f"line {i}\n" for i in range(100, 140))
        >>> cut_to_split(text, "validation")
        'line 138\nline 139\n'
        >>> text == cut_to_split(text, "train") + cut_to_split(text, "validation")
        True
    """
    if split == "all":
        return text
    border = round(len(text) * (1 - VALIDATION_SHARE))
    border = text.rfind("\n", 0, border) + 1 or border
    return text[border:] if split == "validation" else text[:border]
