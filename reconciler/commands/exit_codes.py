# SPDX-License-Identifier: Apache-2.0
"""How ``podsnap`` ends, for scripts: a promise, so a number never changes its meaning.

One command differs on purpose: ``plan`` ends with 2 if something changes, as other programs that
compare do, and therefore never with 2 for a wrong command line.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Self

import click


class _Code(IntEnum):
    """A number with what it means."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Keep the meaning beside the number."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class ExitCode(_Code):
    """The exit code of a command, with what it means."""

    OK = 0, "done"
    ERROR = 1, "it failed; the message says why"
    USAGE = 2, "the command line is wrong"
    NOT_FOUND = 3, "there is no such object"
    FORBIDDEN = 4, "the API server does not let you"
    UNREACHABLE = 5, "the API server does not answer"
    NOT_INSTALLED = 6, "the cluster does not have podsnap's CRDs"
    DAMAGED = 7, "bytes in a bucket are not those that were saved"
    INTERRUPTED = 130, "ended by Ctrl-C"


class PlanExit(_Code):
    """What ``podsnap plan`` ends with where it could plan, and for whatever is wrong with it."""

    NO_CHANGES = 0, "nothing changes"
    ERROR = 1, "a manifest or the command line is wrong; the message says why"
    CHANGES = 2, "something changes"


class CommandError(click.ClickException):
    """An end with a message for people and a code for scripts."""

    def __init__(self, code: ExitCode, message: str) -> None:
        """``message`` says what was found, what follows and what to do."""
        super().__init__(message)
        self.code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # click has it on the class
        """What click ends with."""
        return int(self.code)


def epilog(own: Iterable[_Code] = ()) -> str:
    """Return the exit codes for a help page; ``own`` are those of a command that differs."""
    codes: dict[int, _Code] = {c.value: c for c in (*ExitCode, *own)}
    return "\b\nExit codes:\n" + "\n".join(f"  {c:<4} {codes[c].meaning}" for c in sorted(codes))
