"""Keys and values of several texts at once, each of its own length.

New positions are written behind those of all texts; what a text has no use for (a draft that was
rejected, the filling behind a shorter prompt) stays as a hole that nobody looks at, until the
cache is full and is closed up.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from wmtp.model.kv_cache import FixedKVCache, KVCache
from wmtp.model.trunk import Positions, Trunk

HOLE = -1


@final
class RowCache:
    """The caches of a stack of layers, and which position of its text each slot holds.

    Args:
        trunk: turns queries and keys by their positions.
        num_layers: how many layers.
        rows: B, how many texts.
        capacity: slots at first; more are made when positions without holes do not fit.
        fixed: let all steps of as many positions have the same shapes, so that they can be
            compiled: queries then look at all slots through a mask.
    """

    def __init__(
        self, trunk: Trunk, num_layers: int, rows: int, capacity: int, *, fixed: bool = False
    ) -> None:
        device = trunk.embedding_VD.device
        self.stack: KVCache | FixedKVCache = (
            FixedKVCache(num_layers, capacity, device) if fixed else KVCache(num_layers, capacity)
        )
        self._rope = trunk.rope
        self.slots_BT = torch.full((rows, capacity), HOLE, device=device)
        self.used = 0
        self._has_holes = fixed or rows > 1

    @property
    def is_allocated(self) -> bool:
        """Whether keys and values have their memory, which the first step takes."""
        return self.stack.is_allocated

    def reserve(self, added: int) -> None:
        """Make room for the next positions, of which ``append`` then tells."""
        if self.used + added > self.slots_BT.shape[1]:
            self._close_up(added)
        self.used += added
        if isinstance(self.stack, FixedKVCache):
            self.stack.reserve(added)

    def append(self, positions_BS: Tensor) -> Positions:
        """Put new positions into their slots; their rotations, and what their queries may see.

        Args:
            positions_BS: of each new token in its text, ``HOLE`` where there is none; such a query
                sees itself alone, so that nothing in it becomes a NaN. As many as were reserved.
        """
        # no position is beyond the slots, because those before it are held
        cos, sin = self._rope.positions(0, self.slots_BT.shape[1], positions_BS.device)
        real_BS = positions_BS.clamp(min=0)
        rope = cos[real_BS].unsqueeze(1), sin[real_BS].unsqueeze(1)
        return Positions(rope, self._mask(positions_BS), None, 0)

    def _mask(self, positions_BS: Tensor) -> Tensor | None:
        """Bool ``[B, 1, S, T]``; None where that is everything, or plainly what came before."""
        added = positions_BS.shape[1]
        if isinstance(self.stack, FixedKVCache):
            slots_BT = self.slots_BT
            new_S = self.stack.next_slot + torch.arange(added, device=positions_BS.device)
            slots_BT.index_copy_(1, new_S, positions_BS)
        else:
            start = self.used - added
            slots_BT = self.slots_BT[:, : self.used]
            slots_BT[:, start:] = positions_BS
            if not self._has_holes and (added == 1 or start == 0):
                return None
            new_S = torch.arange(start, self.used, device=positions_BS.device)
        slots_B1T = slots_BT[:, None]
        seen_BST = (slots_B1T >= 0) & (slots_B1T <= positions_BS[:, :, None])
        itself_ST = new_S[:, None] == torch.arange(slots_BT.shape[1], device=new_S.device)
        return (seen_BST | itself_ST).unsqueeze(1)

    def forget(self, lengths: Sequence[int], dropped: int = 0) -> None:
        """Forget each text's positions from its length on.

        Args:
            lengths: how many positions of each text stay.
            dropped: slots, of those taken last, that no text keeps.
        """
        self.used = self.used - dropped if self._has_holes else lengths[0]
        self.stack.crop(self.used)
        if self._has_holes:
            lengths_B1 = torch.tensor(lengths, device=self.slots_BT.device)[:, None]
            self.slots_BT.masked_fill_(self.slots_BT >= lengths_B1, HOLE)

    def _close_up(self, added: int) -> None:
        """Move what is held to the front, and make more slots if that is not enough."""
        held_BT = self.slots_BT[:, : self.used] >= 0
        longest = int(held_BT.sum(1).max()) if self.used else 0
        order_BT = (~held_BT).byte().argsort(dim=1, stable=True)[:, :longest]
        capacity = self.slots_BT.shape[1]
        if longest + 2 * added > capacity:  # room for a few passes, not for one
            capacity = 2 * capacity + added
        slots_BT = torch.full_like(self.slots_BT[:, :1], HOLE).expand(-1, capacity).clone()
        slots_BT[:, :longest] = self.slots_BT.gather(1, order_BT)
        if capacity == self.slots_BT.shape[1]:
            self.slots_BT.copy_(slots_BT)
        else:
            self.slots_BT = slots_BT
        self.used = longest
        self.stack.close_up(order_BT, capacity)
