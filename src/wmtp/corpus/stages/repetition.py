"""Texts that say the same again and again: repeated lines, repeated runs of words."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from wmtp.corpus.document import Document, Dropped
from wmtp.corpus.stages.base import NOTHING, Counts


@dataclass(frozen=True, slots=True)
class Repetition:
    """Drop long texts in which the same lines or the same runs of eojeols come back.

    Only texts with enough lines or eojeols are judged, so that refrains of a short review and
    laughter of any length stay. Shares are of characters, as one long repeated line weighs more
    than a short one.

    Attributes:
        min_lines: lines that are not empty from which on lines are judged.
        max_line_share: of characters of such lines that may stand in repetitions of a line.
        min_eojeols: eojeols from which on runs of them are judged.
        max_top_share: of characters that the most frequent pair, triple and quadruple of
            eojeols may cover.
        max_run_share: of eojeols that may begin a run of ``run`` that was there before.
        run: eojeols.

    Drops:
        ``repeated_lines``, ``repeated_ngram``, ``repeated_runs``.

    Source:
        Rae et al. 2021 (arXiv:2112.11446), table A1, which counts English words; here the limits
        are those that leave clean Korean files whole (see docs/corpus.md).
    """

    name: ClassVar[str] = "repetition"

    min_lines: int = 10
    max_line_share: float = 0.5
    min_eojeols: int = 100
    max_top_share: tuple[float, float, float] = (0.3, 0.3, 0.3)
    max_run_share: float = 0.5
    run: int = 6

    def __call__(self, document: Document) -> Document | Dropped:
        """The document, or why it is dropped."""
        text = document.text
        if text.count("\n") + 1 >= self.min_lines and (dropped := self._lines(text)):
            return dropped
        # an eojeol and its space take two characters at least
        if len(text) >= 2 * self.min_eojeols - 1:
            eojeols = text.split()
            if len(eojeols) >= self.min_eojeols and (dropped := self._eojeols(eojeols)):
                return dropped
        return document

    def counted(self, document: Document) -> tuple[Document | Dropped, Counts]:
        """The same; the text is never changed."""
        return self(document), NOTHING

    def _lines(self, text: str) -> Dropped | None:
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        if len(lines) < self.min_lines:
            return None
        total = sum(map(len, lines))
        repeated = total - sum(map(len, set(lines)))
        if repeated > self.max_line_share * total:
            return Dropped("repeated_lines", f"{repeated} of {total} characters")
        return None

    def _eojeols(self, eojeols: Sequence[str]) -> Dropped | None:
        characters = sum(map(len, eojeols))
        counts = Counter(eojeols)
        runs = len(eojeols) - self.run + 1
        # a run that was there before begins with an eojeol that was there before
        if len(eojeols) - len(counts) > self.max_run_share * runs:
            distinct = len(set(zip(*(eojeols[i:] for i in range(self.run)), strict=False)))
            if runs - distinct > self.max_run_share * runs:
                return Dropped(
                    "repeated_runs", f"{runs - distinct} of {runs} runs were there before"
                )
        most = max(times * len(eojeol) for eojeol, times in counts.items())
        for n, share in enumerate(self.max_top_share, start=2):
            # what n eojeols cover together, each of them covers at least as much alone
            if n * most <= share * characters:
                continue
            grams = Counter(zip(*(eojeols[i:] for i in range(n)), strict=False))
            gram, times = max(grams.items(), key=lambda item: (item[1], item[0]))
            covered = times * sum(map(len, gram))
            if times > 1 and covered > share * characters:
                return Dropped("repeated_ngram", f"{' '.join(gram)[:60]!r} {times} times")
        return None
