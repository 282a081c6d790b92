"""The pages of some regions of memory as arrays with an element for each; whole blocks. Pure.

A gibibyte that has not changed is a quarter of a million pages, of which something is to be said
under the freeze, while clients wait. One by one, by their addresses, that took 40 ms there.
"""

from __future__ import annotations

import numpy as np

from pymigrate.checkpoint.known_pages import BLOCK, PAGE, Addresses, Flags, Indices, States
from pymigrate.runtime.memory import Regions


class Grid:
    """The blocks that regions lie in, and which of their pages are in these.

    Every array of flags or states has ``BLOCK`` elements for each of ``blocks``, in their order.
    """

    def __init__(self, regions: Regions) -> None:
        """Lay out regions, whole pages, which ascend and do not overlap; at least one."""
        firsts, ends = regions[:, 0] // PAGE, regions[:, 1] // PAGE
        begins, counts = firsts // BLOCK, (ends - 1) // BLOCK - firsts // BLOCK + 1
        numbers = np.repeat(begins - np.cumsum(counts) + counts, counts.astype(np.int64))
        numbers += np.arange(len(numbers), dtype=np.uint64)
        # They ascend. np.unique and its like load 15 ms of numpy when they are called first.
        self._blocks = numbers[np.append(True, numbers[1:] != numbers[:-1])]
        places = np.searchsorted(self._blocks, begins) * BLOCK + (firsts % BLOCK).astype(np.int64)
        edges = np.zeros(len(self._blocks) * BLOCK + 1, np.int8)
        edges[places] += 1
        edges[places + (ends - firsts).astype(np.int64)] -= 1  # where the next begins that is 0
        self.inside: Flags = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)

    @property
    def blocks(self) -> list[int]:
        """The numbers of the blocks."""
        numbers: list[int] = self._blocks.tolist()
        return numbers

    def addresses(self, places: Indices) -> Addresses:
        """Return the addresses of elements."""
        blocks, slots = np.divmod(places, BLOCK)
        return np.asarray((self._blocks[blocks] * BLOCK + slots.astype(np.uint64)) * PAGE)

    def runs(self, states: States) -> tuple[Addresses, Addresses, States]:
        """Return runs of pages of one state: where each begins, how many they are, which it is.

        Pages of state 0 are in none.
        """
        is_begin = np.ones(len(states), np.bool_)
        is_begin[1:] = states[1:] != states[:-1]
        is_begin[::BLOCK][1:] |= np.diff(self._blocks) != 1
        begins = np.flatnonzero(is_begin)
        counts = np.diff(begins, append=len(states))
        said = states[begins] != 0
        begins, counts = begins[said], counts[said]
        return self.addresses(begins), counts.astype(np.uint64), states[begins]
