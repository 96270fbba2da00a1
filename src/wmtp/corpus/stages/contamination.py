"""Documents that hold a piece of an evaluation file: a model must not have seen its questions."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts

_TOKENS = re.compile(r"\w+")


def tokens_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case: eojeols without punctuation.

    Example:
        >>> tokens_of("12시 땡! Hello, 안녕(하세요).")
        ['12시', '땡', 'hello', '안녕', '하세요']
    """
    return _TOKENS.findall(unicodedata.normalize("NFC", text).lower())


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationNgrams:
    """The runs of tokens that evaluation files consist of, as sorted hashes.

    Sixteen bytes for each run, and the words themselves: a file of 100 MB of Korean takes about
    as much again.

    Attributes:
        n: tokens in a run.
        shortest: a text with fewer than ``n`` tokens counts as one run if it has at least so
            many; shorter ones are too common to tell anything.
        names: of the evaluation files.
        hashes: of runs, ascending, by their number of tokens. uint64.
        files: for each hash the first file that has it, as its place in ``names``. uint32.
        words: every token of any run.
    """

    n: int
    shortest: int
    names: tuple[str, ...]
    hashes: Mapping[int, NDArray[np.uint64]] = field(repr=False)
    files: Mapping[int, NDArray[np.uint32]] = field(repr=False)
    words: frozenset[str] = field(repr=False)

    @classmethod
    def of(
        cls, files: Mapping[str, Iterable[str]], n: int = 13, shortest: int = 8
    ) -> "EvaluationNgrams":
        """Collect the runs of evaluation texts.

        Args:
            files: the texts of each evaluation file, by its name; question, context and answer are
                texts of their own.
            n: tokens in a run.
            shortest: tokens of the shortest text that is looked for.
        """
        if not 1 <= shortest <= n:
            raise ValueError(f"shortest={shortest} is not between 1 and n={n}")
        found: dict[int, dict[int, int]] = {}
        words: set[str] = set()
        for number, texts in enumerate(files.values()):
            for text in texts:
                tokens = tokens_of(text)
                if len(tokens) < shortest:
                    continue
                words.update(tokens)
                size = min(n, len(tokens))
                runs = found.setdefault(size, {})
                for start in range(len(tokens) - size + 1):
                    runs.setdefault(_hash(tokens[start : start + size]), number)
        return cls(
            n,
            shortest,
            tuple(files),
            {size: np.array(sorted(runs), np.uint64) for size, runs in found.items()},
            {
                size: np.array([runs[key] for key in sorted(runs)], np.uint32)
                for size, runs in found.items()
            },
            frozenset(words),
        )

    def find(self, text: str) -> tuple[str, str] | None:
        """The first evaluation file that the text shares a run with, and that run."""
        tokens = tokens_of(text)
        if len(tokens) < self.shortest:
            return None
        # a run is only possible where each of its words is one of the files'
        known = bytes(map(self.words.__contains__, tokens))
        for size, hashes in sorted(self.hashes.items()):
            wanted = b"\x01" * size
            start = known.find(wanted)
            while start >= 0:
                run = tokens[start : start + size]
                key = np.uint64(_hash(run))
                place = int(np.searchsorted(hashes, key))
                if place < len(hashes) and hashes[place] == key:
                    return self.names[self.files[size][place]], " ".join(run)
                start = known.find(wanted, start + 1)
        return None


def _hash(tokens: list[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(tokens).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class Contamination:
    """Drop documents that share a run of tokens with an evaluation file.

    Attributes:
        evaluation: the runs.

    Drops:
        ``evaluation_overlap``, with the evaluation file and the run.

    Source:
        Brown et al. 2020 (arXiv:2005.14165), appendix C: overlaps of 13 tokens.
    """

    name: ClassVar[str] = "contamination"

    evaluation: EvaluationNgrams

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        found = self.evaluation.find(document.text)
        if found is None:
            return document
        return Dropped("evaluation_overlap", f"{found[0]}: {found[1]}")

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING
