"""As many drafts as pay, by what passes cost and what was accepted."""

from itertools import pairwise

from wmtp.model.decoding.draft_length import DraftLength


def lengths(costs: list[float], accepted: int, rounds: int) -> list[int]:
    """What is chosen where passes cost so much and so many drafts of each are accepted."""
    chooser = DraftLength("auto", len(costs) - 1)
    chosen = []
    for _ in range(rounds):
        count = chooser.next()
        chooser.learn(count, [min(accepted, count)], costs[count])
        chosen.append(count)
    return chosen


def test_each_length_is_tried_and_then_the_best_is_taken() -> None:
    """1, 2, 3, 4 tokens for 1.0, 1.1, 1.2, 1.3 seconds; and where only the first is ever right."""
    chosen = lengths([1.0, 1.1, 1.2, 1.3], 3, 100)
    assert set(chosen[:8]) == {0, 1, 2, 3}
    assert chosen[8:].count(3) > 85
    assert lengths([1.0, 1.1, 1.2, 1.3], 1, 100)[40:].count(1) > 50


def test_drafts_that_do_not_pay_are_given_up_and_seldom_tried_again() -> None:
    """A round with drafts costs twice what it gives; trials come after 24, 48, 96, ... rounds."""
    chosen = lengths([1.0, 4.0, 6.0, 8.0], 3, 1000)
    assert chosen[8:].count(0) > 970
    trials = [place for place in range(8, 1000) if chosen[place] != 0]
    gaps = [later - earlier for earlier, later in pairwise(trials)]
    assert max(gaps) > 300


def test_a_number_is_kept_to() -> None:
    chooser = DraftLength(2, 3)
    chosen = []
    for _ in range(20):
        chosen.append(chooser.next())
        chooser.learn(chosen[-1], [0], 1.0 + chosen[-1])
    assert set(chosen[4:]) == {2}
    assert DraftLength(7, 3).next() in (0, 3)
