# SPDX-License-Identifier: Apache-2.0
"""What somebody probably meant to write."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(written: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """Return the known word that is most like the written one, empty if none is like it.

    Capitals, dashes and underscores make no difference. ``cutoff`` says how like, up to 1.
    """
    plain = {_plain(word): word for word in known}
    found = get_close_matches(_plain(written), plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else ""


def same_word(written: str, known: Iterable[str]) -> str:
    """Return the known word that differs in capitals, dashes and underscores only, or nothing."""
    return next((word for word in known if _plain(word) == _plain(written)), "")


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")
