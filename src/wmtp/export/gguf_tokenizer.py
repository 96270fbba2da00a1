"""A byte-level BPE tokenizer in the words of a GGUF file.

llama.cpp reads vocabulary and merges from the file, but how a text is first cut into words is
code, chosen by a name. The name is found by comparing what ``tokenizer.json`` says with what that
code does; a way of cutting that llama.cpp does not have is refused, because a name that nearly
fits gives other ids here and there, and nobody would notice.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from wmtp.data.fast_encoding import GPT2_WORDS
from wmtp.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, TextTokenizer
from wmtp.data.tokenizer_training import WORDS
from wmtp.errors import DataError
from wmtp.model.stored_config import StoredConfig
from wmtp.untrusted import LARGEST_JSON, read_bounded, read_json

CHAT_TEMPLATE_FILE = "chat_template.jinja"

# Kinds of tokens, as the file numbers them.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_NEWLINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3_WORDS = "|".join((_CONTRACTIONS, _LETTERS, r"\p{N}{1,3}", _OTHERS, _NEWLINES_AND_SPACES))
QWEN2_WORDS = "|".join((_CONTRACTIONS, _LETTERS, r"\p{N}", _OTHERS, _NEWLINES_AND_SPACES))
QWEN35_WORDS = WORDS  # ours, chosen for that
_SINGLE_DIGITS = "single digits"

# (how a text is cut, whether whole words are looked up before merging) -> llama.cpp's name
_NAMES = {
    ((GPT2_WORDS,), False): "gpt-2",
    ((_SINGLE_DIGITS, GPT2_WORDS), False): "smollm",
    ((LLAMA3_WORDS,), True): "llama-bpe",
    ((LLAMA3_WORDS,), False): "dbrx",
    ((QWEN2_WORDS,), False): "qwen2",
    ((QWEN35_WORDS,), False): "qwen35",
}


@dataclass(frozen=True)
class GgufTokenizer:
    """What the file says about its tokenizer.

    Attributes:
        pre: llama.cpp's name for the way a text is cut into words.
        tokens: the text of each id, byte-level but for added ones.
        kinds: of each id.
        merges: pairs, joined by a space, best first.
        special: ids by their role: ``bos``, ``eos``, ``eot``, ``pad``; absent where there is none.
        adds_bos: whether ``bos`` stands in front of every text.
        chat_template: Jinja, or None.
        notes: what falls short, for the user.
    """

    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    special: dict[str, int]
    adds_bos: bool
    chat_template: str | None
    notes: tuple[str, ...]

    def write(self, writer: Any) -> None:
        """Add all this to a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(False)  # our tokenizers end no text by themselves
        for role, token_id in self.special.items():
            add = {
                "bos": writer.add_bos_token_id,
                "eos": writer.add_eos_token_id,
                "eot": writer.add_eot_token_id,
                "pad": writer.add_pad_token_id,
            }[role]
            add(token_id)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def gguf_tokenizer(directory: Path, stored: StoredConfig) -> GgufTokenizer | None:
    """Read the tokenizer of a model directory; None if there is none.

    Raises:
        DataError: it cannot be read, llama.cpp has none that gives the same ids, or it has ids
            that the model does not know.
    """
    file = directory / TOKENIZER_FILE
    if not file.is_file():
        return None
    text_tokenizer = TextTokenizer.load(directory)
    # written out again, what older files leave unsaid is there
    parts = json.loads(Tokenizer.from_str(_text(file)).to_str())
    if text_tokenizer.vocab_size > stored.trunk.vocab_size:
        raise DataError(
            f"'{file}' has ids up to {text_tokenizer.vocab_size - 1}, but the model knows only "
            f"{stored.trunk.vocab_size}. It is another model's tokenizer."
        )
    pre = pre_tokenizer_name(file, parts)
    tokens, kinds = _vocabulary(file, parts, stored.trunk.vocab_size)
    front = text_tokenizer.bos_ids
    if len(front) > 1:
        raise DataError(
            f"'{file}' puts {len(front)} tokens in front of a text; llama.cpp puts one or none."
        )
    config = _config(directory)
    return GgufTokenizer(
        pre=pre,
        tokens=tokens,
        kinds=kinds,
        merges=_merges(file, parts["model"]["merges"]),
        special=_special(stored, config, tokens, text_tokenizer),
        adds_bos=bool(front),
        chat_template=_chat_template(directory, config),
        notes=_notes(file, parts),
    )


def pre_tokenizer_name(file: Path, parts: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a ``tokenizer.json`` cuts a text into words.

    Args:
        file: for messages.
        parts: what the file holds.

    Raises:
        DataError: llama.cpp has no such way, or the tokenizer is no byte-level BPE.
    """
    model = parts["model"]
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("dropout") or odd:
        raise DataError(
            f"'{file}' is no plain byte-level BPE, and only such tokenizers are exported to GGUF."
        )
    normalizer = parts.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise DataError(
            f"'{file}' changes the text first (normalizer {normalizer.get('type')}); llama.cpp "
            "does not for a byte-level BPE, so ids would differ."
        )
    steps = _steps(file, parts.get("pre_tokenizer"))
    name = _NAMES.get((steps, bool(model.get("ignore_merges"))))
    if name is None:
        raise DataError(
            f"'{file}' cuts a text into words in a way that llama.cpp does not have "
            f"({' then '.join(steps) or 'not at all'}), so ids would differ. A tokenizer with the "
            "words of GPT-2, SmolLM, Llama 3, Qwen2 or Qwen3.5 can be exported."
        )
    return name


def _steps(file: Path, pre: Any) -> tuple[str, ...]:
    """How a text is cut, without the step to bytes that ends it."""
    kind = pre.get("type") if isinstance(pre, dict) else None
    if kind == "Sequence":
        return tuple(step for part in pre["pretokenizers"] for step in _steps(file, part))
    if kind == "ByteLevel" and not pre["add_prefix_space"]:
        return (GPT2_WORDS,) if pre["use_regex"] else ()
    if kind == "Digits" and pre["individual_digits"]:
        return (_SINGLE_DIGITS,)
    if kind == "Split" and pre["behavior"] == "Isolated" and not pre["invert"]:
        pattern = pre["pattern"].get("Regex")
        if pattern is not None:
            return (_SINGLE_DIGITS if pattern == r"\p{N}" else str(pattern),)
    raise DataError(
        f"'{file}' cuts a text into words with a step that llama.cpp does not have: "
        f"{json.dumps(pre)[:120]}."
    )


def _vocabulary(
    file: Path, parts: dict[str, Any], size: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and kind of every id of the model; ids that the tokenizer lacks are unused."""
    tokens = [f"[PAD{token_id}]" for token_id in range(size)]
    kinds = [UNUSED] * size
    for text, token_id in parts["model"]["vocab"].items():
        tokens[token_id], kinds[token_id] = text, NORMAL
    for added in parts.get("added_tokens") or ():
        token_id, is_special = added["id"], added["special"]
        strips = [key for key in ("lstrip", "rstrip", "single_word") if added.get(key)]
        if strips and not is_special:
            raise DataError(
                f"'{file}': the added token {added['content']!r} has {strips[0]}, which llama.cpp "
                "does not know, so ids would differ."
            )
        tokens[token_id] = added["content"]
        kinds[token_id] = CONTROL if is_special else USER_DEFINED
    if len(set(tokens)) < size:
        twice = next(text for text in tokens if tokens.count(text) > 1)
        raise DataError(f"'{file}' has two ids for {twice!r}; llama.cpp takes one for each text.")
    return tuple(tokens), tuple(kinds)


def _merges(file: Path, merges: list[Any]) -> tuple[str, ...]:
    if not merges:
        raise DataError(f"'{file}' has no merges; llama.cpp takes no such tokenizer.")
    return tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in merges)


def _special(
    stored: StoredConfig,
    config: dict[str, Any],
    tokens: tuple[str, ...],
    tokenizer: TextTokenizer,
) -> dict[str, int]:
    named = stored.special_tokens
    stops = named.eos or (tokenizer.eos_id,)
    front = tokenizer.bos_ids[0] if tokenizer.bos_ids else named.bos
    found = {
        "bos": _id_of(config.get("bos_token"), tokens) if front is None else front,
        "eos": stops[0],
        "eot": stops[1] if len(stops) > 1 else None,
        "pad": named.pad,
    }
    return {role: i for role, i in found.items() if i is not None and 0 <= i < len(tokens)}


def _id_of(token: Any, tokens: tuple[str, ...]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokens.index(text) if text in tokens else None


def _text(file: Path) -> str:
    try:
        return read_bounded(file, LARGEST_JSON).decode("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' cannot be read: {error}.") from error


def _config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG_FILE
    found = read_json(file) if file.is_file() else {}  # TextTokenizer.load has read it before
    return found if isinstance(found, dict) else {}


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / CHAT_TEMPLATE_FILE
    if file.is_file():
        return _text(file)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _notes(file: Path, parts: dict[str, Any]) -> tuple[str, ...]:
    if parts.get("normalizer") is None:
        return ()
    return (
        "falls short: the tokenizer composes characters first (NFC) and llama.cpp does not; ids "
        "are equal for text that is composed, as nearly all text is",
    )
