# SPDX-License-Identifier: Apache-2.0
"""What an unquoted scalar means to kubectl (sigs.k8s.io/yaml over go-yaml v2).

The trap: neither YAML 1.1 nor 1.2. ``0644`` is octal and ``on`` a boolean, as in 1.1; ``12:30``
and dates are text, as in 1.2; ``1e3`` is an integer, as in JSON; what has more than 64 bits is
rounded, or is text.
"""

import math
import re
from typing import Final

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False"})
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STRAY_UNDERSCORE: Final = re.compile(r"(?<![0-9])_|_(?![0-9])")
# From here on Go writes a float with an exponent.
_WHOLE_LIMIT: Final = 1e21
_BASES: Final = {"0x": 16, "0o": 8, "0b": 2}


def scalar(text: str) -> str | int | float | bool | None:
    """Read an unquoted scalar.

    Raises:
        ValueError: it is a number that JSON does not have.
    """
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE or text == "FALSE":
        return False
    return _number(text)


def _number(text: str) -> str | int | float:
    unsigned = text[1:] if text[:1] in {"+", "-"} else text
    first = unsigned.lstrip("_") if unsigned is not text else text
    if first[:1] not in set("0123456789."):
        return text
    if not text.isascii() or (text[0] == "." and _STRAY_UNDERSCORE.search(text)):
        return text
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is no number that JSON has; quote it if it is text")
    body = unsigned.replace("_", "").lower()
    sign = -1 if text[0] == "-" else 1
    try:
        base = _BASES.get(body[:2]) if body.isalnum() else None
        if base or body.isdigit():
            is_octal = body.startswith("0") and not set(body) & {"8", "9"}
            exact = sign * (int(body[2:], base) if base else int(body, 8 if is_octal else 10))
            if -(2**63) <= exact < 2**63:
                return exact
            if exact < 2**64 and exact > 0:
                return int(float(exact))
            if base:
                return text
        number = sign * float(body)
    except ValueError:
        return text
    if math.isinf(number):
        return text
    return int(number) if number.is_integer() and abs(number) < _WHOLE_LIMIT else number
