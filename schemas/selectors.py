# SPDX-License-Identifier: Apache-2.0
"""Label selectors, as the API server evaluates them (apimachinery, ``LabelSelectorAsSelector``).

The trap: an empty selector selects everything, and ``NotIn`` also selects objects without the key.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_KEY: Final = r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?"
_TERM: Final = re.compile(
    rf"\s*(?:(?P<absent>!\s*)?(?P<bare>{_KEY})"
    rf"|(?P<key>{_KEY})\s*(?:(?P<sign>==|=|!=)\s*(?P<value>[A-Za-z0-9._-]*)"
    rf"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\)))\s*"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of ``matchExpressions``."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Judge one label set; an operator unknown here selects nothing."""
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case _:
                return False


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A selector over labels: all of its requirements hold."""

    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Read ``matchLabels`` and ``matchExpressions``."""
        exact = [
            Requirement(key=k, operator="In", values=(v,))
            for k, v in sorted((raw.get("matchLabels") or {}).items())
        ]
        expressions = [
            Requirement(key=e["key"], operator=e["operator"], values=tuple(e.get("values") or ()))
            for e in raw.get("matchExpressions") or ()
        ]
        return cls(requirements=(*exact, *expressions))

    @classmethod
    def parse_text(cls, text: str) -> Self:
        """Read kubectl's spelling: ``role=golden,tier!=test,zone in (a, b),new,!old``.

        Raises:
            ValueError: the text is no such selector.
        """
        terms = re.split(r",(?![^(]*\))", text)
        found = [_TERM.fullmatch(term) for term in terms]
        requirements = [_requirement(term) for term in found if term]
        if len(requirements) != len(terms):
            raise ValueError(f"{text!r} is no label selector; write it like role=golden,!old")
        return cls(requirements=tuple(requirements))

    @classmethod
    def nothing(cls) -> Self:
        """Return a selector that selects no object."""
        return cls((Requirement("nothing", "Exists"), Requirement("nothing", "DoesNotExist")))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether every requirement holds for these labels."""
        return all(r.matches(labels) for r in self.requirements)


def _requirement(term: re.Match[str]) -> Requirement:
    if term["bare"]:
        return Requirement(term["bare"], "DoesNotExist" if term["absent"] else "Exists")
    if term["set"]:
        values = tuple(value.strip() for value in term["values"].split(","))
        return Requirement(term["key"], "In" if term["set"] == "in" else "NotIn", values)
    operator = "NotIn" if term["sign"] == "!=" else "In"
    return Requirement(term["key"], operator, (term["value"],))
