"""Keys and values of the positions that a decoder has already read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
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


class LayerCache(ABC):
    """One layer's keys and values."""

    _held: tuple[Tensor, Tensor] | None = None

    @property
    def is_allocated(self) -> bool:
        """Whether there is memory for them; the first positions take it."""
        return self._held is not None

    @abstractmethod
    def extend(self, key_BGSC: Tensor, value_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new positions; keys and values to attend to, ``[B, G, T, C]`` each.

        Raises:
            ValueError: there is no room for the new positions.
        """


@final
class GrowingLayerCache(LayerCache):
    """Gives out what is held and no more, from memory taken once, at the first use.

    Args:
        capacity: most positions it can hold.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0

    def extend(self, key_BGSC: Tensor, value_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions and return keys and values of all, ``[B, G, T, C]`` each."""
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
            keys, values = self._held
            self._held = closed_up(keys, order_BT, capacity), closed_up(values, order_BT, capacity)
        self.capacity, self.length = capacity, order_BT.shape[1]


@final
class FixedLayerCache(LayerCache):
    """Gives out all of its memory, so that every step has the same shapes: a mask says what counts.

    Args:
        capacity: most positions it can hold.
        next_slot: int64 ``[]``, where the next positions go; kept up by whoever owns the cache.
    """

    def __init__(self, capacity: int, next_slot: Tensor) -> None:
        self._capacity, self._next_slot = capacity, next_slot

    def extend(self, key_BGSC: Tensor, value_BGSC: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new positions and return the whole memory, ``[B, G, T, C]`` each."""
        batch, groups, added, width = key_BGSC.shape
        if self._held is None:
            shape = (batch, groups, self._capacity, width)
            # not empty: what a mask hides must still be a number
            self._held = (key_BGSC.new_zeros(shape), value_BGSC.new_zeros(shape))
        keys, values = self._held
        slots_S = self._next_slot + torch.arange(added, device=keys.device)
        keys.index_copy_(2, slots_S, key_BGSC)
        values.index_copy_(2, slots_S, value_BGSC)
        return keys, values

    def close_up(self, order_BT: Tensor, capacity: int) -> None:
        """Keep some positions of each row, in that order; in the same memory if that will do."""
        if self._held is not None:
            moved = [closed_up(held_BGTC, order_BT, capacity) for held_BGTC in self._held]
            if capacity == self._capacity:
                for held_BGTC, moved_BGTC in zip(self._held, moved, strict=True):
                    held_BGTC.copy_(moved_BGTC)
            else:
                self._held = (moved[0], moved[1])
        self._capacity = capacity


def closed_up(held_BGTC: Tensor, order_BT: Tensor, capacity: int) -> Tensor:
    """Some positions of each row, in that order, in new memory for ``capacity`` of them."""
    batch, groups, _, width = held_BGTC.shape
    index_BGTC = order_BT[:, None, :, None].expand(-1, groups, -1, width)
    moved_BGTC = held_BGTC.new_zeros(batch, groups, capacity, width)
    moved_BGTC[:, :, : order_BT.shape[1]] = held_BGTC.gather(2, index_BGTC)
    return moved_BGTC


class LayeredCache(Cache):
    """The caches of a stack of layers.

    Attributes:
        layers: one for each.
    """

    layers: Sequence[LayerCache]

    @property
    def is_allocated(self) -> bool:
        """Whether keys and values have their memory, which the first step takes."""
        return self.layers[0].is_allocated

    @abstractmethod
    def close_up(self, order_BT: Tensor, capacity: int) -> None:
        """Keep some positions of each row, in that order, in room for ``capacity`` of them."""


@final
class KVCache(LayeredCache):
    """What is held and no more, as long as it is; the shape of a step grows with it.

    Args:
        num_layers: how many layers.
        capacity: most positions of a row, prompt included.
    """

    layers: list[GrowingLayerCache]

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.layers = [GrowingLayerCache(capacity) for _ in range(num_layers)]

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


@final
class FixedKVCache(LayeredCache):
    """All of its memory at every step, so that steps can be compiled and recorded.

    Args:
        num_layers: how many layers.
        capacity: most positions of a row, prompt included.
        device: where they are needed.

    Attributes:
        next_slot: int64 ``[]`` on the device, where the positions of a step begin.
    """

    layers: list[FixedLayerCache]

    def __init__(self, num_layers: int, capacity: int, device: torch.device) -> None:
        self.next_slot = torch.zeros((), dtype=torch.int64, device=device)
        self.layers = [FixedLayerCache(capacity, self.next_slot) for _ in range(num_layers)]
        self._length = 0

    @property
    def length(self) -> int:
        """How many positions have been read."""
        return self._length

    def reserve(self, added: int) -> None:
        """Say how many positions the next step adds, before it runs."""
        self.next_slot.fill_(self._length)
        self._length += added

    def crop(self, length: int) -> None:
        """Let the next step write from ``length`` on."""
        self._length = length

    def close_up(self, order_BT: Tensor, capacity: int) -> None:
        """Keep some positions of each row, in that order, in room for ``capacity`` of them."""
        for layer in self.layers:
            layer.close_up(order_BT, capacity)
        self._length = order_BT.shape[1]
