# SPDX-License-Identifier: Apache-2.0
"""What a policy's annotations ask for beyond the contract, read once.

A wrong option counts as not set, with one exception: what protects (who may define a shared image,
how strict an identity is) fails closed, because a typo must not open what it was meant to shut.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self, TypeVar

from schemas.durations import parse_go_duration_s, parse_retention_s
from schemas.encoding import Encoding
from schemas.names import (
    BACKGROUND_LOADING_ANNOTATION,
    COMPRESSION_ANNOTATION,
    GATE_ANNOTATION,
    KEEP_LAST_ANNOTATION,
    OBSOLETE_TTL_ANNOTATION,
    PROBE_BUDGET_ANNOTATION,
    REQUIRE_SIGNATURE_ANNOTATION,
    SAVE_SELECTOR_ANNOTATION,
    STRICT_IDENTITY_ANNOTATION,
)
from schemas.selectors import LabelSelector

DEFAULT_PROBE_BUDGET_S: Final = 10.0
# The CRI gives a sandbox two minutes; half a minute is not ours, and five seconds fetch.
GATE_LIMIT_S: Final = 85.0
# Tenants write them, and every agent reads them.
_LENGTH_LIMIT: Final = 1024

T = TypeVar("T")


class Strictness(StrEnum):
    """What makes two Pods differ, beyond the contract's distilled spec."""

    ENV = "env"
    SECRETS = "secrets"
    CONFIG_MAPS = "configmaps"


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """The options of one policy; ``errors`` says what is wrong with them.

    ``gate_s`` is how long a Pod waits for the first snapshot of its identity (0: not at all),
    ``probe_budget_s`` how long a save that nobody asked for may pause a serving Pod, ``save_from``
    which Pods may be saved (``None``: all), ``obsolete_ttl_s`` how long an obsolete snapshot is
    kept (``None``: for ever), ``keeps_last`` whether retention spares the last usable snapshot of
    an identity, ``background`` whether a Pod runs before all of its memory is on the node
    (``None``: if the image is large), ``encoding`` in what form new snapshots are stored,
    ``requires_signature`` whether nothing but snapshots with a trusted signature are restored.
    """

    gate_s: float = 0.0
    probe_budget_s: float = DEFAULT_PROBE_BUDGET_S
    save_from: LabelSelector | None = None
    strict: frozenset[Strictness] = field(default_factory=frozenset)
    keeps_last: bool = False
    obsolete_ttl_s: float | None = None
    background: bool | None = None
    encoding: Encoding = Encoding.RAW
    requires_signature: bool = False
    errors: tuple[str, ...] = ()

    @classmethod
    def parse(cls, annotations: Mapping[str, str]) -> Self:
        """Read a policy's annotations."""
        errors: list[str] = []

        def read(key: str, parse: Callable[[str], T], *, unset: T, wrong: T) -> T:
            text = annotations.get(key)
            if text is None:
                return unset
            if len(text) > _LENGTH_LIMIT:
                errors.append(f"annotation {key}: it is longer than {_LENGTH_LIMIT} characters")
                return wrong
            try:
                return parse(text)
            except ValueError as error:
                errors.append(f"annotation {key}: {error}")
                return wrong

        default_s = DEFAULT_PROBE_BUDGET_S
        return cls(
            gate_s=read(GATE_ANNOTATION, _gate_s, unset=0.0, wrong=0.0),
            probe_budget_s=read(
                PROBE_BUDGET_ANNOTATION, parse_go_duration_s, unset=default_s, wrong=default_s
            ),
            save_from=read(
                SAVE_SELECTOR_ANNOTATION,
                LabelSelector.parse_text,
                unset=None,
                wrong=LabelSelector.nothing(),
            ),
            strict=read(
                STRICT_IDENTITY_ANNOTATION,
                _strictness,
                unset=frozenset(),
                wrong=frozenset(Strictness),
            ),
            keeps_last=read(KEEP_LAST_ANNOTATION, _switch, unset=False, wrong=True),
            obsolete_ttl_s=read(OBSOLETE_TTL_ANNOTATION, parse_retention_s, unset=None, wrong=None),
            background=read(BACKGROUND_LOADING_ANNOTATION, _true_or_false, unset=None, wrong=None),
            encoding=read(
                COMPRESSION_ANNOTATION, _encoding, unset=Encoding.RAW, wrong=Encoding.RAW
            ),
            requires_signature=read(REQUIRE_SIGNATURE_ANNOTATION, _switch, unset=False, wrong=True),
            errors=tuple(errors),
        )


def _gate_s(text: str) -> float:
    value_s = parse_go_duration_s(text)
    if value_s > GATE_LIMIT_S:
        raise ValueError(
            f"it is {text}; a sandbox must be made within two minutes, so the gate is at most "
            f"{GATE_LIMIT_S:.0f}s"
        )
    return value_s


def _strictness(text: str) -> frozenset[Strictness]:
    words = {word.strip() for word in text.split(",")}
    wrong = sorted(words - set(Strictness))
    if wrong:
        raise ValueError(
            f"{', '.join(map(repr, wrong))} is none of {', '.join(Strictness)}; until it is "
            "mended, all of them count"
        )
    return frozenset(map(Strictness, words))


def _switch(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError(f"{text!r} is neither true nor false; until it is mended, it is true")
    return text == "true"


def _true_or_false(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError(f"{text!r} is neither true nor false; it counts as not set")
    return text == "true"


def _encoding(text: str) -> Encoding:
    known = {"none": Encoding.RAW, "zstd": Encoding.ZSTD}
    if text not in known:
        raise ValueError(f"{text!r} is none of {', '.join(known)}; it counts as none")
    return known[text]
