"""How many tokens to draft: as many as pay, by what passes cost here and what was accepted."""

from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, final

Speculative = int | Literal["auto"]
"""Tokens to draft for each pass, 0 for none; or as many as pay."""

_ROUNDS_TO_TRY_EACH: Final = 2
_ROUNDS_BETWEEN_TRIALS: Final = 24
"""At first; twice as many after each trial that found nothing better."""
_MOST_ROUNDS_BETWEEN_TRIALS: Final = 384
_REMEMBERED_PASSES: Final = 8
_FORGETTING: Final = 0.97
"""Of what a depth had accepted, at each pass: the text changes its nature now and then."""


@final
class DraftLength:
    """Chooses the number of drafts of each pass, and keeps what passes cost.

    A pass that drafts ``k`` tokens gives ``1 + a_1 + a_1 a_2 + ... + a_1 .. a_k`` tokens on
    average, where ``a_d`` is how often draft ``d`` is accepted if those before it were. The length
    is taken that gives most tokens a second: the first passes try each length, later ones now and
    then those next to it, because a longer text makes passes dearer; more and more seldom as long
    as that changes nothing.

    Args:
        speculative: the length, or "auto".
        longest: most tokens that can be drafted, ``H - 1``.
    """

    def __init__(self, speculative: Speculative, longest: int) -> None:
        self._longest = longest
        self._fixed = None if speculative == "auto" else min(speculative, longest)
        self._seconds: list[deque[float]] = [
            deque(maxlen=_REMEMBERED_PASSES) for _ in range(longest + 1)
        ]
        # a draft is taken to be accepted every other time before anything is known
        self._tried, self._accepted = [2.0] * longest, [1.0] * longest
        self._best, self._between = -1, _ROUNDS_BETWEEN_TRIALS
        self._until_trial = self._between
        lengths = range(longest, -1, -1) if self._fixed is None else {0, self._fixed}
        self._to_try = [length for length in lengths for _ in range(_ROUNDS_TO_TRY_EACH)]

    def next(self) -> int:
        """How many tokens to draft now."""
        if self._to_try:
            return self._to_try.pop(0)
        if self._fixed is not None:
            return self._fixed
        best = max(range(self._longest + 1), key=self.tokens_a_second)
        if best != self._best:
            self._best, self._between = best, _ROUNDS_BETWEEN_TRIALS
            self._until_trial = self._between
        self._until_trial -= 1
        if self._until_trial <= 0:
            self._between = min(2 * self._between, _MOST_ROUNDS_BETWEEN_TRIALS)
            self._until_trial = self._between
            self._to_try = [k for k in (best - 1, best + 1) if 0 <= k <= self._longest]
        return best

    def learn(self, drafted: int, accepted: Sequence[int], seconds: float | None) -> None:
        """Take in a pass.

        Args:
            drafted: tokens that were drafted for each text.
            accepted: how many of them were taken, for each text.
            seconds: what it took; None if that says nothing, as of a prompt.
        """
        if seconds is not None:
            self._seconds[drafted].append(seconds)
        for count in accepted:
            for depth in range(min(count + 1, drafted)):
                self._tried[depth] = _FORGETTING * self._tried[depth] + 1
                self._accepted[depth] = _FORGETTING * self._accepted[depth] + (depth < count)

    def seconds(self, drafted: int) -> float | None:
        """Least time of the last passes with so many drafts; None before there was one."""
        return min(self._seconds[drafted], default=None)

    def tokens_a_second(self, drafted: int) -> float:
        """What such passes are expected to give; 0 before there was one."""
        seconds = self.seconds(drafted)
        if seconds is None:
            return 0.0
        chance = tokens = 1.0
        for tried, accepted in zip(self._tried[:drafted], self._accepted, strict=False):
            chance *= accepted / tried
            tokens += chance
        return tokens / seconds
