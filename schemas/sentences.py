# SPDX-License-Identifier: Apache-2.0
"""Pieces of sentences that many messages have.

A condition, an event and a table have room for a few names; how many there are is told always.
"""

from collections.abc import Sequence


def some_of(names: Sequence[object], most: int) -> str:
    """Return the first names, and how many more there are: ``a, b and 3 more``."""
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
