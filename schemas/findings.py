# SPDX-License-Identifier: Apache-2.0
"""What is said of one place in a file that somebody wrote.

One shape for everything that reads files: ``lint`` prints it four ways, a GitSource puts it into
its condition, ``plan`` refuses with it.
"""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is: an error stops, a warning and a note are told."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one place. Lines and columns count from 1; ``hint`` says what to do.

    ``rule`` is a stable name in kebab-case (``unknown-field``), which people may search for.
    """

    file: str
    line: int
    column: int
    severity: Severity
    rule: str
    message: str
    hint: str = ""

    @property
    def place(self) -> str:
        """``file:line:column``, as editors and terminals follow it."""
        return f"{self.file}:{self.line}:{self.column}"

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f"; {self.hint}" if self.hint else "")
