# SPDX-License-Identifier: Apache-2.0
"""Which environment variables of a Pod differ from those that its memory was saved with.

The environment is no part of the identity, and a restored process keeps the one it was saved with.
That surprises people, so it is told: by key, never by value. A snapshot records a mark for each
key, which is cut so short (16 bits, keyed by the namespace) that it tells that a value differs and
fits too many other values to find it again. The key is the same for all snapshots of a namespace,
because marks of one value under several keys would add up. A value that is taken from elsewhere
counts by its reference, so a Pod's own name or address is no difference.

The trap: of a few possible values (a PIN) even such a mark leaves one or two. Whoever may read
snapshots should be allowed to read Pods; secrets belong into references, as always.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from schemas.pod import Pod

_MARK_BYTES: Final = 2
_NAMES: Final = 5

Marks = Mapping[str, Mapping[str, str]]


def env_marks(pod: Pod, key: str) -> dict[str, dict[str, str]]:
    """Return container -> variable -> mark (4 hex digits) for all that the memory holds.

    ``key`` is the snapshot's namespace. An ``envFrom`` entry counts as one variable, because what
    it brings stands in another object.
    """
    return {
        container["name"]: {name: _mark(key, value) for name, value in _entries(container)}
        for container in pod.running_containers
    }


def env_differences(marks: Marks, pod: Pod, key: str) -> list[str]:
    """Say for each container which variables differ from the saved ones, in order of the names.

    Containers that the marks do not name are left out: nothing is known about them.
    """
    found = []
    for container, wanted in env_marks(pod, key).items():
        saved = marks.get(container)
        if saved is None or saved == wanted:
            continue
        parts = (
            *_named(
                "differs", "differ", [k for k in wanted if saved.get(k, wanted[k]) != wanted[k]]
            ),
            *_named("is new", "are new", [k for k in wanted if k not in saved]),
            *_named("is gone", "are gone", [k for k in saved if k not in wanted]),
        )
        found.append(f"container {container}: {', '.join(parts)}")
    return found


def _named(one: str, many: str, names: list[str]) -> Iterator[str]:
    shown = sorted(names)[:_NAMES]
    if len(names) > _NAMES:
        yield f"{', '.join(shown)} and {len(names) - _NAMES} more {many}"
    else:
        yield from (f"{name} {one}" for name in shown)


def _entries(container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for source in container.get("envFrom") or ():
        (kind,) = source.keys() & {"configMapRef", "secretRef"} or {"envFrom"}
        name = (source.get(kind) or {}).get("name", "")
        yield f"envFrom {kind} {name}", _canonical(source)
    for variable in container.get("env") or ():
        taken = variable.get("valueFrom")
        yield variable["name"], _canonical(taken) if taken else str(variable.get("value") or "")


def _canonical(tree: Any) -> str:  # noqa: ANN401 - a JSON tree has no narrower type
    return json.dumps(tree, sort_keys=True)


def _mark(key: str, value: str) -> str:
    digest = hashlib.blake2b(value.encode(), key=key.encode()[:64], digest_size=_MARK_BYTES)
    return digest.hexdigest()
