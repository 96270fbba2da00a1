"""Drafts: what the heads beyond the first say will follow the last token of each text.

A text has the tokens ``x_0 .. x_n`` of which the trunk has read ``x_0 .. x_{n-1}``. Head ``k`` at
row ``s = n - 1`` predicts ``x_{n+k}``, the ``k``-th draft ``d_k``. Heads with blocks keep keys and
values of earlier rows, as training saw them; every row that was made with a draft is forgotten
before the next round, whether the draft was accepted or not: its row is then made again, with
others, in one pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from wmtp.model.decoding.draft_vocabulary import DraftVocabulary
from wmtp.model.decoding.row_cache import HOLE, RowCache
from wmtp.model.decoding.steps import PLAIN_STEPS, Steps
from wmtp.model.heads.linear import LinearHeads
from wmtp.model.heads.parallel import ParallelHeads
from wmtp.model.heads.sequential import Depth, SequentialHeads
from wmtp.model.llama import Block
from wmtp.model.multi_token import MultiTokenModel
from wmtp.model.trunk import TrunkStates

Pick = Callable[[Tensor], Tensor]
"""Chooses a draft for each text from logits over the draft vocabulary; int64 ``[B]``."""


class Drafter(ABC):
    """The heads of a model, at work on several texts."""

    @abstractmethod
    def follow(self, states: TrunkStates, positions_BS: Tensor, end: int) -> None:
        """Take in what the trunk has just read and nobody has forgotten.

        Args:
            states: of the new positions.
            positions_BS: in each text; ``HOLE`` where there is none, or it was rejected.
            end: all positions are before it.
        """

    @abstractmethod
    def draft(self, texts: Sequence[Sequence[int]], count: int, pick: Pick) -> list[Tensor]:
        """The next ``count`` drafts of each text.

        Args:
            texts: all tokens of each; the trunk has read all but the last.
            count: at most ``H - 1``.
            pick: called with the logits of head 1, then of head 2, ..., over the draft vocabulary

        Returns:
            ``count`` tensors int64 ``[B]``.
        """


def build_drafter(
    model: MultiTokenModel,
    vocabulary: DraftVocabulary,
    rows: int,
    capacity: int,
    steps: Steps = PLAIN_STEPS,
) -> Drafter | None:
    """What drafts with the model's heads; None if it has none."""
    heads = model.heads
    if isinstance(heads, SequentialHeads):
        of_context = TrunkFedDrafter if heads.shape.context == "trunk" else SequentialDrafter
        return of_context(model, heads, vocabulary, rows, capacity, steps)
    if isinstance(heads, ParallelHeads):
        return ParallelDrafter(model, heads, vocabulary, rows, capacity, steps)
    if isinstance(heads, LinearHeads):
        return LinearDrafter(heads, vocabulary)
    return None


@final
class History:
    """One state of every row that the trunk has read, by its place in the text.

    Args:
        rows: B, how many texts.
        capacity: rows of a text at first.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self._rows, self._capacity = rows, capacity
        self._held_BTD: Tensor | None = None

    def write(self, states_BSD: Tensor, positions_BS: Tensor, end: int) -> None:
        """Keep states at their positions.

        Args:
            states_BSD: anything where there is no position.
            positions_BS: in each text, ``HOLE`` for none.
            end: all positions are before it.
        """
        held_BTD = self._held_BTD
        if held_BTD is None or held_BTD.shape[1] <= end:  # one more: what has no place goes last
            self._capacity = max(self._capacity, 2 * end) + 1
            grown_BTD = states_BSD.new_zeros(self._rows, self._capacity, states_BSD.shape[2])
            if held_BTD is not None:
                grown_BTD[:, : held_BTD.shape[1]] = held_BTD
            self._held_BTD = held_BTD = grown_BTD
        places_BS = torch.where(positions_BS == HOLE, held_BTD.shape[1] - 1, positions_BS)
        held_BTD.scatter_(1, places_BS.unsqueeze(2).expand_as(states_BSD), states_BSD)

    def at(self, positions_BW: Tensor) -> Tensor:
        """The states at positions, ``[B, W, D]``; anything where there is none."""
        assert self._held_BTD is not None
        places_BW = positions_BW.clamp(min=0)
        width = self._held_BTD.shape[2]
        return self._held_BTD.gather(1, places_BW.unsqueeze(2).expand(-1, -1, width))


@final
class Window:
    """The rows of each text that a head has still to make, filled up in front to one width.

    Args:
        starts: the first row of each text.
        stops: the row after its last one.
        device: where the positions are needed.
        steps: says the width.
    """

    def __init__(
        self, starts: Sequence[int], stops: Sequence[int], device: torch.device, steps: Steps
    ) -> None:
        self.starts = list(starts)
        longest = max(stop - start for start, stop in zip(starts, stops, strict=True))
        self.width = steps.width(longest)
        rows = [
            [HOLE] * (self.width - (stop - start)) + list(range(start, stop))
            for start, stop in zip(starts, stops, strict=True)
        ]
        self.positions_BW = torch.tensor(rows, device=device)

    def tokens(self, texts: Sequence[Sequence[int]], *, ahead: int) -> Tensor:
        """``x_{s + ahead}`` of each row ``s``; 0 where there is no row."""
        rows = [
            list(text[start + ahead : start + ahead + self.width])
            for text, start in zip(texts, self.starts, strict=True)
        ]
        filled = [[0] * (self.width - len(row)) + row for row in rows]
        return torch.tensor(filled, device=self.positions_BW.device)


class BlockDrafter(Drafter):
    """Heads of a block each, which keep their earlier rows and one state of the trunk's rows.

    Args:
        model: whose heads they are.
        depths: how many there are.
        vocabulary: what is drafted.
        rows: B, how many texts.
        capacity: rows of a text at first.
        steps: run the blocks.
    """

    def __init__(
        self,
        model: MultiTokenModel,
        depths: int,
        vocabulary: DraftVocabulary,
        rows: int,
        capacity: int,
        steps: Steps,
    ) -> None:
        self._model, self._vocabulary, self._steps = model, vocabulary, steps
        self._history = History(rows, capacity)
        self._caches = [
            RowCache(model.trunk, 1, rows, capacity, fixed=steps.are_compiled)
            for _ in range(depths)
        ]
        # rows that each head has made with tokens that are certain, of each text
        self._made = [[0] * rows for _ in range(depths)]

    @abstractmethod
    def _state(self, states: TrunkStates) -> Tensor:
        """What the heads read of the trunk."""

    def _logits(self, hidden_BWD: Tensor) -> Tensor:
        """Of the last row, over the draft vocabulary."""
        return self._vocabulary.logits(hidden_BWD[:, -1], self._model.unembedding_VD)

    def follow(self, states: TrunkStates, positions_BS: Tensor, end: int) -> None:
        """Keep the state that the heads read."""
        self._history.write(self._state(states), positions_BS, end)


class ChainDrafter(BlockDrafter):
    """Depth after depth, each fed with the draft and the state of the one before."""

    def __init__(
        self,
        model: MultiTokenModel,
        heads: SequentialHeads,
        vocabulary: DraftVocabulary,
        rows: int,
        capacity: int,
        steps: Steps,
    ) -> None:
        super().__init__(model, len(heads.chain), vocabulary, rows, capacity, steps)
        self._chain = heads.chain
        self._is_post_norm = heads.shape.hidden == "post_norm"

    def _state(self, states: TrunkStates) -> Tensor:
        return states.post_norm if self._is_post_norm else states.pre_norm

    def _run(
        self, index: int, embedded_BWD: Tensor, hidden_BWD: Tensor, positions_BW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows of one depth; the logits of the last one, and what travels from all."""
        depth, cache = self._chain[index], self._caches[index]
        cache.reserve(positions_BW.shape[1])
        pre_BWD, post_BWD = self._steps.run(
            one_depth, depth, cache, embedded_BWD, hidden_BWD, positions_BW
        )
        return self._logits(post_BWD), post_BWD if self._is_post_norm else pre_BWD


def one_depth(
    depth: Depth, cache: RowCache, embedded_BWD: Tensor, hidden_BWD: Tensor, positions_BW: Tensor
) -> tuple[Tensor, Tensor]:
    """Run rows of one depth, before and after its last norm."""
    places = cache.append(positions_BW)
    found: tuple[Tensor, Tensor] = depth(
        embedded_BWD, hidden_BWD, places.rope, places.mask, cache.stack.layers[0]
    )
    return found


@final
class SequentialDrafter(ChainDrafter):
    """In the context ``chained``: a depth attends to its own rows, each fed by the one before."""

    def draft(self, texts: Sequence[Sequence[int]], count: int, pick: Pick) -> list[Tensor]:
        """Run the chain over the rows that a depth in use lacks, and over the last row."""
        stops = [len(text) - 1 for text in texts]
        starts = [min(rows) for rows in zip(*self._made[:count], strict=True)]
        window = Window(starts, stops, self._model.device, self._steps)
        tokens_BW = window.tokens(texts, ahead=1)
        travelling_BWD = self._history.at(window.positions_BW)
        drafts: list[Tensor] = []
        for index in range(count):
            if drafts:
                tokens_BW = torch.cat((tokens_BW[:, 1:], drafts[-1][:, None]), dim=1)
            self._caches[index].forget(starts)
            embedded_BWD = self._model.trunk.embed(tokens_BW)
            logits_BN, travelling_BWD = self._run(
                index, embedded_BWD, travelling_BWD, window.positions_BW
            )
            drafts.append(pick(logits_BN))
            # row s has read x_{s+1+index}, which is certain up to the text's last token
            self._made[index] = [max(0, stop - index) for stop in stops]
        return drafts


@final
class TrunkFedDrafter(ChainDrafter):
    """In the context ``trunk``: rows ``(x_p, g_0(p-1))``, of which none is made with a draft."""

    def draft(self, texts: Sequence[Sequence[int]], count: int, pick: Pick) -> list[Tensor]:
        """Feed each depth the rows that it lacks, and behind them the chain so far."""
        stops = [len(text) for text in texts]
        device, embed = self._model.device, self._model.trunk.embed
        drafts: list[Tensor] = []
        chain: list[tuple[Tensor, Tensor]] = []  # embedding and state of each step, [B, 1, D]
        for index in range(count):
            made = self._made[index]
            self._caches[index].forget(made)
            window = Window(made, stops, device, self._steps)
            fed_BWD = self._history.at(window.positions_BW - 1)
            fed_BWD = fed_BWD.masked_fill(window.positions_BW.unsqueeze(2) <= 0, 0)
            embedded = [embed(window.tokens(texts, ahead=0)), *(one for one, _ in chain)]
            hidden = [fed_BWD, *(state for _, state in chain)]
            ahead = torch.tensor([range(stop, stop + index) for stop in stops], device=device)
            positions_BW = torch.cat((window.positions_BW, ahead.long()), dim=1)
            logits_BN, travelling_BWD = self._run(
                index, torch.cat(embedded, 1), torch.cat(hidden, 1), positions_BW
            )
            drafts.append(pick(logits_BN))
            chain.append((embed(drafts[-1][:, None]), travelling_BWD[:, -1:]))
            self._made[index] = stops
        return drafts


def one_head(head: Block, cache: RowCache, state_BWD: Tensor, positions_BW: Tensor) -> Tensor:
    """Run rows of a head of its own."""
    places = cache.append(positions_BW)
    hidden_BWD: Tensor = head(state_BWD, places.rope, places.mask, cache.stack.layers[0])
    return hidden_BWD


@final
class ParallelDrafter(BlockDrafter):
    """Heads side by side, each on the trunk's state and on its own earlier rows."""

    def __init__(
        self,
        model: MultiTokenModel,
        heads: ParallelHeads,
        vocabulary: DraftVocabulary,
        rows: int,
        capacity: int,
        steps: Steps,
    ) -> None:
        super().__init__(model, len(heads.each), vocabulary, rows, capacity, steps)
        self._heads = heads

    def _state(self, states: TrunkStates) -> Tensor:
        return states.before_last

    def draft(self, texts: Sequence[Sequence[int]], count: int, pick: Pick) -> list[Tensor]:
        """Run each head over the rows that it lacks."""
        stops = [len(text) - 1 for text in texts]
        drafts = []
        for index, head in enumerate(self._heads.each[:count]):
            window = Window(self._made[index], stops, self._model.device, self._steps)
            cache = self._caches[index]
            cache.reserve(window.width)
            state_BWD = self._history.at(window.positions_BW)
            hidden_BWD = self._steps.run(one_head, head, cache, state_BWD, window.positions_BW)
            drafts.append(pick(self._logits(hidden_BWD)))
            self._made[index] = stops
        return drafts


@final
class LinearDrafter(Drafter):
    """A matrix for each head, on the trunk's last state of each text."""

    def __init__(self, heads: LinearHeads, vocabulary: DraftVocabulary) -> None:
        self._heads, self._vocabulary = heads, vocabulary
        self._last_BD: Tensor | None = None

    def follow(self, states: TrunkStates, positions_BS: Tensor, end: int) -> None:
        """Keep the state of each text's last position."""
        last_B11 = positions_BS.argmax(dim=1)[:, None, None]
        width = states.post_norm.shape[2]
        self._last_BD = states.post_norm.gather(1, last_B11.expand(-1, 1, width)).squeeze(1)

    def draft(self, texts: Sequence[Sequence[int]], count: int, pick: Pick) -> list[Tensor]:
        """One product for each draft."""
        last_BD = self._last_BD
        assert last_BD is not None
        matrices = self._heads.matrices[:count]
        return [pick(self._vocabulary.logits(last_BD, matrix_VD)) for matrix_VD in matrices]
