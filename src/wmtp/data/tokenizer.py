"""The tokenizer of a run: text to ids and back, and how it is told from every other."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from wmtp.data.byte_level import read_token
from wmtp.errors import DataError
from wmtp.untrusted import LARGEST_JSON, read_bounded, read_json

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

# Files that belong to a tokenizer and travel with it into a checkpoint.
_OWN_FILES = (CONFIG_FILE, "special_tokens_map.json", "chat_template.jinja")
_NO_CHARACTER = "\ufffd"  # what bytes that are no character are decoded to
_EOS_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]")

# The library needs about 100 bytes per token while it works; longer texts go through in pieces.
LONGEST_PIECE_CHARS = 1 << 19
LARGEST_VOCABULARY = 1 << 24
# Before a single space between two visible characters every usual pre-tokenizer begins a word.
_CLEAN_CUT = re.compile(r"(?<=\S)(?= \S)")

IdsAndEnds = tuple[NDArray[np.int32], NDArray[np.int32]]
_NOTHING: NDArray[np.int32] = np.empty(0, dtype=np.int32)


def stream_text(tokenizer: "TextTokenizer", ids: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Decode ids as they come; yields a piece of text and the number of ids it stands for.

    An id may be part of a character: its text is held back until the character is whole, or the
    ids end.
    """
    context: list[int] = []  # what was shown last: some tokenizers drop a text's first space
    pending: list[int] = []

    def text_of_pending() -> str:
        return tokenizer.decode([*context, *pending])[len(tokenizer.decode(context)) :]

    for token_id in ids:
        pending.append(token_id)
        text = text_of_pending()
        if not text.endswith(_NO_CHARACTER):
            yield text, len(pending)
            context, pending = pending, []
    if pending:
        yield text_of_pending(), len(pending)


@final
class TextTokenizer:
    """A tokenizer whose text is only text: a literal ``<|endoftext|>`` never becomes the token.

    Attributes:
        eos_id: the token that ends every document.
        bos_ids: what the tokenizer puts in front of every text, often nothing.
        vocab_size: ids are ``0 .. vocab_size - 1``.
    """

    def __init__(self, model: Tokenizer, eos_id: int, files: Mapping[str, bytes]) -> None:
        """Use ``load`` or ``train_tokenizer``; ``files`` are what ``save`` writes."""
        self._model = model
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        self._files = dict(files)
        self.eos_id = eos_id
        self.bos_ids = _tokens_in_front(model)
        self.vocab_size: int = 1 + max(model.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Load a ``tokenizer.json``, or the one in a folder, with what stands beside it.

        Raises:
            DataError: there is none, it cannot be read, or nothing says what ends a document.
        """
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"tokenizer '{path}': there is no {TOKENIZER_FILE}. Write one with "
                "transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
                if path.is_dir()
                else f"tokenizer '{path}': no such file or folder."
            )
        content = _read(file)
        model = _parse_tokenizer(file, content)
        eos_id = _find_eos(model, folder)
        files = {name: _read(folder / name) for name in _OWN_FILES if (folder / name).is_file()}
        if CONFIG_FILE not in files:
            with _told_plainly(file):
                front = _tokens_in_front(model)
            files[CONFIG_FILE] = config_content(
                eos_token=str(model.id_to_token(eos_id)),
                bos_token=str(model.id_to_token(front[0])) if front else None,
            )
        with _told_plainly(file):
            tokenizer = cls(model, eos_id, {TOKENIZER_FILE: content, **files})
        if tokenizer.vocab_size > LARGEST_VOCABULARY:
            raise DataError(
                f"tokenizer '{file}' has the id {tokenizer.vocab_size - 1}; ids are below "
                f"{LARGEST_VOCABULARY}."
            )
        if not tokenizer.encode("a"):
            raise DataError(
                f"tokenizer '{file}' cannot be used: it leaves out the letter a, and who knows "
                "what else, without a word."
            )
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without what goes in front of it or ends it.

        Raises:
            ValueError: the text has half of a surrogate pair, which is no character.
        """
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Ids of each text; the texts are tokenized in parallel where the environment allows."""
        return [ids for ids, _ in self._encode(texts, with_ends=False)]

    def encode_joined(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The same ids, all texts' one after the other, and how many there are of each."""
        ids = self.encode_batch(texts)
        return np.concatenate([_NOTHING, *ids]), np.array([len(one) for one in ids], dtype=np.int64)

    def encode_with_ends(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids of a text, and for each the number of characters up to and including its last."""
        (encoded,) = self._encode([text], with_ends=True)
        return encoded

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of ids; special tokens are left out unless asked for."""
        return str(self._model.decode(list(ids), skip_special_tokens=skip_special))

    def token_text(self, token_id: int) -> str:
        """What one token stands for, as it would be decoded."""
        return self.decode([token_id], skip_special=False)

    @cached_property
    def bytes_of_ids(self) -> NDArray[np.int32] | None:
        """UTF-8 bytes of text that each id stands for, ``[vocab_size]``; 0 for special ones.

        None where an id alone does not tell: the tokenizer is not byte-level.
        """
        if '"ByteLevel"' not in json.dumps(self._json.get("decoder")):
            return None
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for text, token_id in self._model.get_vocab(with_added_tokens=False).items():
            token = read_token(text)
            if token is not None:  # anything else is a special token's name
                lengths[token_id] = len(token)
        for token_id, added in self._model.get_added_tokens_decoder().items():
            lengths[token_id] = 0 if added.special else len(added.content.encode())
        return lengths

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that no text may produce, apart from the one for unknown characters."""
        added = self._model.get_added_tokens_decoder()
        unknown = self._json["model"].get("unk_token")
        return frozenset(
            token_id for token_id, t in added.items() if t.special and t.content != unknown
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides which ids a text gets.

        Two files that differ in layout, or in truncation and padding, have the same one.
        """
        parts = {key: v for key, v in self._json.items() if key not in ("truncation", "padding")}
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def parts(self) -> Mapping[str, Any]:
        """What ``tokenizer.json`` holds, with all that older files leave unsaid."""
        return self._json

    def save(self, folder: Path) -> None:
        """Write the files that transformers' ``AutoTokenizer`` and ``load`` read.

        Raises:
            OSError: a file could not be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_files, (self.eos_id, self._files)

    @cached_property
    def _json(self) -> dict[str, Any]:
        parts: dict[str, Any] = json.loads(self._model.to_str())
        return parts

    @cached_property
    def _special_ids_array(self) -> NDArray[np.int32]:
        return _int32(sorted(self.special_ids))

    @cached_property
    def _special_text(self) -> re.Pattern[str] | None:
        contents = [str(self._model.id_to_token(token_id)) for token_id in self.special_ids]
        return re.compile("|".join(map(re.escape, contents))) if contents else None

    def _encode(self, texts: Sequence[str], with_ends: bool) -> list[IdsAndEnds]:
        cuts = [cuts_of(text) for text in texts]
        encoded = self._encode_pieces(texts, cuts, with_ends)
        for index, (ids, _) in enumerate(encoded):
            if np.isin(ids, self._special_ids_array).any():
                # a vocabulary that matches its special tokens in plain text: cut them apart
                inside = self._cuts_in_specials(texts[index])
                borders = sorted({*cuts[index], *inside})
                encoded[index] = self._encode_pieces([texts[index]], [borders], with_ends)[0]
        return encoded

    def _encode_pieces(
        self, texts: Sequence[str], cuts: Sequence[list[int]], with_ends: bool
    ) -> list[IdsAndEnds]:
        """Tokenize each text in the pieces between its cuts, a bounded number at a time."""
        encode = self._model.encode_batch if with_ends else self._model.encode_batch_fast
        pieces = [
            (index, start, stop)
            for index, borders in enumerate(cuts)
            for start, stop in pairwise(borders)
        ]
        parts: list[list[IdsAndEnds]] = [[(_NOTHING, _NOTHING)] for _ in texts]
        for group in _groups(pieces):
            group_texts = [texts[index][start:stop] for index, start, stop in group]
            encodings = encode(group_texts, add_special_tokens=False)
            for (index, start, _), encoding in zip(group, encodings, strict=True):
                ends = [start + end for _, end in encoding.offsets] if with_ends else []
                parts[index].append((_int32(encoding.ids), _int32(ends)))
        return [
            (np.concatenate([ids for ids, _ in part]), np.concatenate([ends for _, ends in part]))
            for part in parts
        ]

    def _cuts_in_specials(self, text: str) -> list[int]:
        found = self._special_text.finditer(text) if self._special_text else ()
        return [match.start() + 1 for match in found]


def _from_files(eos_id: int, files: Mapping[str, bytes]) -> TextTokenizer:
    return TextTokenizer(Tokenizer.from_buffer(files[TOKENIZER_FILE]), eos_id, files)


def config_content(eos_token: str, bos_token: str | None) -> bytes:
    """A ``tokenizer_config.json`` with which transformers reads ``tokenizer.json`` as it is."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos_token,
        "eos_token": eos_token,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(config, indent=2, ensure_ascii=False).encode()


def cuts_of(text: str, longest: int | None = None) -> list[int]:
    """Borders of pieces of bounded length, cut where no token would reach across if there is one.

    A text without such a place is cut where it must be, which costs it at most one token.
    """
    longest = longest or LONGEST_PIECE_CHARS
    borders = [0]
    while len(text) - borders[-1] > longest:
        start = borders[-1]
        latest = start + longest
        clean = _CLEAN_CUT.search(text, start + longest // 2, latest)
        borders.append(clean.start() if clean else latest)
    return [*borders, len(text)]


def _groups(pieces: Iterable[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Pieces ``(text, start, stop)`` in groups that are tokenized at once."""
    group: list[tuple[int, int, int]] = []
    length = 0
    for index, start, stop in pieces:
        group.append((index, start, stop))
        length += stop - start
        if length >= LONGEST_PIECE_CHARS:
            yield group
            group, length = [], 0
    if group:
        yield group


def _int32(numbers: list[int]) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def _read(file: Path) -> bytes:
    try:
        return read_bounded(file, LARGEST_JSON)
    except OSError as error:
        raise DataError(f"tokenizer '{file}' cannot be read: {error.strerror or error}.") from error


def _parse_tokenizer(file: Path, content: bytes) -> Tokenizer:
    try:
        text = content.decode("utf-8")
        json.loads(text)  # the library's own message for this is long and vague
    except (ValueError, RecursionError) as error:
        raise DataError(f"tokenizer '{file}' is not JSON: {error}.") from error
    with _told_plainly(file):
        return Tokenizer.from_str(text)


@contextmanager
def _told_plainly(file: Path) -> Iterator[None]:
    """Turn whatever the library makes of a strange file into one line.

    Raises:
        DataError: the file cannot be used.
    """
    try:
        yield
    except BaseException as error:
        # the library raises nothing more precise than Exception; a panic of its Rust is not one
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200]
        raise DataError(f"tokenizer '{file}' cannot be used: {said}.") from error


def _tokens_in_front(model: Tokenizer) -> tuple[int, ...]:
    plain: list[int] = model.encode("a", add_special_tokens=False).ids
    whole: list[int] = model.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def _find_eos(model: Tokenizer, folder: Path) -> int:
    """The id that ends a document, as the files beside the tokenizer name it."""
    token = _read_json(folder / CONFIG_FILE).get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None and not isinstance(token, str):
        raise DataError(
            f"'{folder / CONFIG_FILE}': eos_token is {str(token)[:40]}, which is no text."
        )
    token_id = None if token is None else model.token_to_id(token)
    if token_id is not None:
        return token_id
    for name in ("generation_config.json", "config.json"):
        token_id = _read_json(folder / name).get("eos_token_id")
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]
        if (
            isinstance(token_id, int)
            and 0 <= token_id < LARGEST_VOCABULARY
            and model.id_to_token(token_id) is not None
        ):
            return token_id
    special = {t.content: i for i, t in model.get_added_tokens_decoder().items() if t.special}
    for name in _EOS_NAMES:
        if name in special:
            return int(special[name])
    raise DataError(
        f"tokenizer in '{folder}': nothing says which token ends a document. "
        f'Add {{"eos_token": "..."}} to {folder / CONFIG_FILE}.'
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"'{file}' cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"'{file}' is not a JSON object.")
    return value
