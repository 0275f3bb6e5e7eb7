# SPDX-License-Identifier: Apache-2.0
"""The CRC32C of a whole from the CRC32Cs of its parts, without reading a byte again.

Appending zero bytes to a message multiplies its CRC, taken as a polynomial over GF(2), by a power
of x; the CRC of the appended bytes is then added, which is XOR. google-crc32c has no such call.
"""

import base64
import functools
from collections.abc import Iterable
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, lowest bit first
_ONE: Final = 1 << 31


def combined(parts: Iterable[tuple[str, int]]) -> str:
    """Return the checksum of parts, each given by its own (base64, as in objects) and its bytes."""
    crc = 0
    for encoded, length_bytes in parts:
        part = int.from_bytes(base64.b64decode(encoded), "big")
        crc = _product(_power(length_bytes), crc) ^ part
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


@functools.lru_cache(maxsize=256)
def _power(length_bytes: int) -> int:
    """Return x to the number of bits, modulo the polynomial."""
    result, square = _ONE, _ONE >> 8  # x**0, and x**8 for one byte
    while length_bytes:
        if length_bytes & 1:
            result = _product(square, result)
        square = _product(square, square)
        length_bytes >>= 1
    return result


def _product(a: int, b: int) -> int:
    """Multiply two polynomials, modulo the polynomial; bit 31 is the constant term."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return result
