# SPDX-License-Identifier: Apache-2.0
"""Label selectors, as the API server evaluates them (apimachinery, ``LabelSelectorAsSelector``).

The trap: an empty selector selects everything, and ``NotIn`` also selects objects without the key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


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

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether every requirement holds for these labels."""
        return all(r.matches(labels) for r in self.requirements)
