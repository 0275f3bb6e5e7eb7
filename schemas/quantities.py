# SPDX-License-Identifier: Apache-2.0
"""Quantities of memory, as ``resources`` spells them (apimachinery, ``resource.Quantity``)."""

import re
from decimal import Decimal

_QUANTITY = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,3})?")
# What is longer is no amount of memory, and would take long to compute.
_LENGTH_LIMIT = 64
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_bytes(text: str) -> int:
    """Return whole bytes for a quantity such as ``512Mi``.

    Raises:
        ValueError: the text is no quantity.
    """
    found = _QUANTITY.fullmatch(text)
    if not found or len(text) > _LENGTH_LIMIT:
        raise ValueError(f"{text!r} is not a quantity; write it like 512Mi or 2G")
    number, unit = Decimal(found[1]), found[2] or ""
    if unit.endswith("i"):
        return int(number * 1024 ** ("KMGTPE".index(unit[0]) + 1))
    if unit in _DECIMAL:
        return int(number.scaleb(_DECIMAL[unit]))
    return int(number.scaleb(int(unit[1:]))) if unit else int(number)
