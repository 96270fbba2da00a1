"""Reads tokens of several texts through a trunk, and forgets what was read in vain."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

from torch import Tensor

from wmtp.model.decoding.row_cache import HOLE, RowCache
from wmtp.model.llama import LlamaTrunk
from wmtp.model.trunk import Positions, Trunk, TrunkStates


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


def build_reader(trunk: Trunk, rows: int, capacity: int) -> Reader:
    """A reader for so many texts.

    Raises:
        CheckpointError: the trunk cannot go on from a cache.
        ValueError: it cannot read several texts at once.
    """
    if isinstance(trunk, LlamaTrunk):
        return LlamaReader(trunk, rows, capacity)
    if rows > 1:
        raise ValueError("a foreign trunk reads one text at a time")
    return ForeignReader(trunk, capacity)


@final
class LlamaReader(Reader):
    """Our own trunk, which takes positions and masks of each text by itself."""

    def __init__(self, trunk: LlamaTrunk, rows: int, capacity: int) -> None:
        self._trunk = trunk
        layers, device = trunk.shape.num_layers, trunk.embedding_VD.device
        self._cache = RowCache(layers, rows, capacity, device)

    def read(self, tokens_BS: Tensor, positions_BS: Tensor) -> TrunkStates:
        """Run the blocks over the tokens."""
        return run_blocks_of(self._trunk, self._trunk.embed(tokens_BS), positions_BS, self._cache)

    def forget(self, lengths: Sequence[int], dropped: int) -> None:
        """Make holes of what is behind the lengths."""
        self._cache.forget(lengths, dropped)


def run_blocks_of(
    trunk: LlamaTrunk, embedded_BSD: Tensor, positions_BS: Tensor, cache: RowCache
) -> TrunkStates:
    """As the trunk's own forward, for texts of different lengths."""
    places = places_of(trunk, positions_BS, cache.append(positions_BS))
    x_BSD = before_last_BSD = embedded_BSD
    for block, layer in zip(trunk.blocks, cache.layers, strict=True):
        before_last_BSD = x_BSD
        x_BSD = block(x_BSD, places.rope, places.mask, layer)
    return TrunkStates(before_last_BSD, x_BSD, trunk.norm(x_BSD))


def places_of(trunk: Trunk, positions_BS: Tensor, mask: Tensor | None) -> Positions:
    """Rotations of each token's own position, ``[B, 1, S, C / 2]``, and what it may see."""
    end = trunk.shape.max_seq_length
    cos, sin = trunk.rope.positions(0, end, positions_BS.device)
    real_BS = positions_BS.clamp(min=0)
    return Positions((cos[real_BS].unsqueeze(1), sin[real_BS].unsqueeze(1)), mask, None, 0)


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


__all__ = ["HOLE", "Reader", "build_reader", "places_of"]
