"""Keys and values of the positions that a decoder has already read."""

from abc import ABC, abstractmethod
from typing import final

from torch import Tensor


class Cache(ABC):
    """What a trunk keeps of the positions it has read; use it without gradients."""

    @property
    @abstractmethod
    def length(self) -> int:
        """How many positions have been read."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget every position from ``length`` on, for instance a rejected draft."""


@final
class LayerCache:
    """One layer's keys and values in memory taken once, at the first use.

    Args:
        capacity: most positions it can hold.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._held: tuple[Tensor, Tensor] | None = None

    def extend(self, key_BGSC: Tensor, value_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions and return keys and values of all, ``[B, G, T, C]`` each.

        Raises:
            ValueError: there is no room for the new positions.
        """
        batch, groups, added, width = key_BGSC.shape
        end = self.length + added
        if end > self.capacity:
            raise ValueError(f"{end} positions do not fit into a cache of {self.capacity}")
        if self._held is None:
            # Allocated here because only here dtype and device are known, autocast included.
            shape = (batch, groups, self.capacity, width)
            self._held = (key_BGSC.new_empty(shape), value_BGSC.new_empty(shape))
        keys, values = self._held
        keys[:, :, self.length : end] = key_BGSC
        values[:, :, self.length : end] = value_BGSC
        self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def crop(self, length: int) -> None:
        """Forget every position from ``length`` on.

        Raises:
            ValueError: fewer positions are held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot crop a cache of {self.length} positions to {length}")
        self.length = length

    def close_up(self, order_BT: Tensor, capacity: int) -> None:
        """Keep some positions of each row, in that order, in room for ``capacity`` of them."""
        if self._held is not None:
            kept = []
            for held_BGTC in self._held:
                batch, groups, _, width = held_BGTC.shape
                index_BGTC = order_BT[:, None, :, None].expand(-1, groups, -1, width)
                moved_BGTC = held_BGTC.new_empty(batch, groups, capacity, width)
                moved_BGTC[:, :, : order_BT.shape[1]] = held_BGTC.gather(2, index_BGTC)
                kept.append(moved_BGTC)
            self._held = (kept[0], kept[1])
        self.capacity, self.length = capacity, order_BT.shape[1]


@final
class KVCache(Cache):
    """The caches of a stack of layers.

    Args:
        num_layers: how many layers.
        capacity: most positions of a row, prompt included.
    """

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """How many positions have been read."""
        return self.layers[0].length

    def crop(self, length: int) -> None:
        """Forget every position from ``length`` on, for instance a rejected draft."""
        for layer in self.layers:
            layer.crop(length)

    def close_up(self, order_BT: Tensor, capacity: int) -> None:
        """Keep some positions of each row, in that order, in room for ``capacity`` of them."""
        for layer in self.layers:
            layer.close_up(order_BT, capacity)
