# SPDX-License-Identifier: Apache-2.0
"""When the things of a schedule happen: in the middle of what others do.

A *move* is something that happens: its name, a number that says to whom or how much, and how many
*breaths* of whoever acts pass before it. A program breathes whenever it asks something of its
surroundings. A schedule is a list of moves, and shrinks like one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

Move = tuple[str, int, int]
_DEEPEST: Final = 4


class Interleaving:
    """Lets moves happen, at most a few within each other."""

    def __init__(
        self, moves: Sequence[Move], known: Mapping[str, Callable[[Any, int], object]]
    ) -> None:
        """Begin before the first move; ``known`` says what to do for each, given the world."""
        self._moves = list(reversed(moves))
        self._known = known
        self._wait = 0
        self._depth = 0
        self._is_quiet = False

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let nothing happen until the end of the block."""
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before

    def run(self) -> None:
        """Let every move happen."""
        while self._moves:
            self._next()

    def forget(self) -> None:
        """Let no further move happen."""
        self._moves.clear()

    def breathe(self) -> None:
        """Let the next move happen here if it is time for it."""
        if self._is_quiet or self._depth >= _DEEPEST:
            return
        if self._wait > 0:
            self._wait -= 1
            return
        while self._moves and self._wait == 0:
            self._next()

    def _next(self) -> None:
        name, number, _ = self._moves.pop()
        self._wait = self._moves[-1][2] if self._moves else 0
        self._depth += 1
        try:
            self._known[name](self, number)
        finally:
            self._depth -= 1
