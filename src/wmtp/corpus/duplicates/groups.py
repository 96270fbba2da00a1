"""Documents that belong together, told pair by pair."""

import numpy as np
from numpy.typing import NDArray


class Groups:
    """Disjoint groups over one array, each named by its lowest number (union-find)."""

    def __init__(self, parent: NDArray[np.uint32]) -> None:
        """Begin with the given parents.

        Args:
            parent: of each number a lower one of its group, or itself; changed in place. uint32.
        """
        self._parent = parent

    def root(self, number: int) -> int:
        """The lowest number of the group."""
        parent = self._parent
        while (above := int(parent[number])) != number:
            # half of the way is shortened for the next who asks
            parent[number] = parent[above]
            number = int(parent[number])
        return number

    def same(self, one: int, other: int) -> bool:
        """Whether two are in one group."""
        return self.root(one) == self.root(other)

    def join(self, one: int, other: int) -> None:
        """Make one group of two."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low
