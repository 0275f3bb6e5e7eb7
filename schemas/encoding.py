# SPDX-License-Identifier: Apache-2.0
"""In what form the chunks of a part are stored."""

from enum import StrEnum


class Encoding(StrEnum):
    """The value is the suffix of the object's name.

    ``ZSTD``: each chunk is one frame of its own; a chunk of zeros is stored as nothing.
    """

    RAW = ""
    ZSTD = ".zst"
