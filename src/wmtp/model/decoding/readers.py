"""Reads tokens of several texts through a trunk, and forgets what was read in vain."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor

from wmtp.model.decoding.row_cache import RowCache
from wmtp.model.decoding.steps import PLAIN_STEPS, Steps
from wmtp.model.llama import LlamaTrunk
from wmtp.model.trunk import Trunk, TrunkStates


class Reader(ABC):
    """What a trunk has read of several texts."""

    @abstractmethod
    def read(self, tokens_BS: Tensor, positions_BS: Tensor) -> TrunkStates:
        """Read on.

        Args:
            tokens_BS: int64, anything where there is no position.
            positions_BS: of each in its text, one after the other; ``HOLE`` for none.

        Returns:
            States ``[B, S, D]``; without meaning where there is no position.
        """

    @abstractmethod
    def forget(self, lengths: Sequence[int], dropped: int) -> None:
        """Forget each text's positions from its length on.

        Args:
            lengths: one for each text.
            dropped: how many of the tokens read last no text keeps.
        """


def build_reader(trunk: Trunk, rows: int, capacity: int, steps: Steps = PLAIN_STEPS) -> Reader:
    """A reader for so many texts.

    Raises:
        CheckpointError: the trunk cannot go on from a cache.
        ValueError: it cannot read several texts at once.
    """
    if isinstance(trunk, LlamaTrunk):
        return LlamaReader(trunk, rows, capacity, steps)
    if rows > 1:
        raise ValueError("a foreign trunk reads one text at a time")
    return ForeignReader(trunk, capacity)


def read_on(
    trunk: LlamaTrunk, cache: RowCache, tokens_BS: Tensor, positions_BS: Tensor
) -> TrunkStates:
    """Run a trunk over tokens that stand behind those in the cache."""
    places = cache.append(positions_BS)
    states: TrunkStates = trunk(trunk.embed(tokens_BS), places, cache.stack)
    return states


@final
class LlamaReader(Reader):
    """Our own trunk, which takes positions and masks of each text by itself."""

    def __init__(self, trunk: LlamaTrunk, rows: int, capacity: int, steps: Steps) -> None:
        self._trunk, self._steps = trunk, steps
        layers, fixed = trunk.shape.num_layers, steps.are_compiled
        self._cache = RowCache(trunk, layers, rows, capacity, fixed=fixed)

    def read(self, tokens_BS: Tensor, positions_BS: Tensor) -> TrunkStates:
        """Run the blocks over the tokens."""
        self._cache.reserve(tokens_BS.shape[1])
        return self._steps.run(read_on, self._trunk, self._cache, tokens_BS, positions_BS)

    def forget(self, lengths: Sequence[int], dropped: int) -> None:
        """Make holes of what is behind the lengths."""
        self._cache.forget(lengths, dropped)


@final
class ForeignReader(Reader):
    """A single text through code that is not ours."""

    def __init__(self, trunk: Trunk, capacity: int) -> None:
        self._trunk = trunk
        self._cache = trunk.new_cache(capacity)

    def read(self, tokens_BS: Tensor, positions_BS: Tensor) -> TrunkStates:
        """Run the model over the tokens, which stand behind those that were read."""
        places = self._trunk.positions(tokens_BS.shape[1], None, self._cache.length)
        states: TrunkStates = self._trunk(self._trunk.embed(tokens_BS), places, self._cache)
        return states

    def forget(self, lengths: Sequence[int], dropped: int) -> None:
        """Crop the cache."""
        if dropped:
            self._cache.crop(self._cache.length - dropped)
