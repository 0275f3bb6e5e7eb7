# SPDX-License-Identifier: Apache-2.0
"""Pods as admission would leave them: asked of the API server by a dry run, or by our own rules.

A dry run needs the right to create Pods and changes nothing. Templates that are alike are sent
once. Where the server does not answer for a Pod (no right, no such namespace, a webhook that takes
no dry runs), our own rules are used and the reason is told; a Pod that it refuses is an error.
The trap: 403 is said of a missing right, and by admission of a Pod that breaks a rule.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from policies.expected_pod import admitted_pod, manifest_of
from policies.planned_starts import Key, Workload
from schemas.pod import Pod

if TYPE_CHECKING:
    from backends.kube.client import KubeClient
    from backends.kube.errors import ApiError

_AT_ONCE: Final = 8
_REFUSED: Final = frozenset({400, 403, 422})
# What says nothing about the Pod: a webhook with side effects, RBAC, what a namespace has just now.
_NO_VERDICT: Final = (
    "does not support dry run",
    "cannot create resource",
    "cannot patch resource",
    "exceeded quota",
    "error looking up service account",
    "is being terminated",
)
_FIELD_MANAGER: Final = "podsnap-plan"


class OwnRules:
    """Completes Pods without an API server."""

    def __init__(self, because: str) -> None:
        """``because`` says why none is asked."""
        self._because = because
        self._completed: set[Key] = set()
        self.errors: list[str] = []

    def complete(self, workloads: Sequence[Workload]) -> list[Workload]:
        """Return the workloads with their Pods as admission would leave them."""
        self._completed |= {w.key for w in workloads}
        return [replace(w, pod=admitted_pod(w.pod)) for w in workloads]

    def told(self) -> list[str]:
        """Say how many Pods were completed by what, and why."""
        return _told(set(), {self._because: self._completed})


class DryRun:
    """Completes Pods by asking the API server; ``errors`` names those that it refuses."""

    def __init__(self, client: "KubeClient") -> None:
        """Nothing is asked yet."""
        self._client = client
        self._answered: set[Key] = set()
        self._instead: defaultdict[str, set[Key]] = defaultdict(set)
        self.errors: list[str] = []

    def complete(self, workloads: Sequence[Workload]) -> list[Workload]:
        """Return the workloads with their Pods as admission would leave them."""
        keys = [_alike(w.pod) for w in workloads]
        first = dict(zip(keys, workloads, strict=True))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = dict(zip(first, pool.map(self._ask, first.values()), strict=True))
        return [self._completed(w, answers[key]) for w, key in zip(workloads, keys, strict=True)]

    def told(self) -> list[str]:
        """Say how many Pods were completed by what, and why."""
        return _told(self._answered, self._instead)

    def _ask(self, workload: Workload) -> "Pod | ApiError":
        from backends.kube.client import PODS
        from backends.kube.errors import ApiError

        manifest = manifest_of(workload.pod)
        try:
            made = self._client.create(PODS, manifest, field_manager=_FIELD_MANAGER, dry_run=True)
        except ApiError as error:
            return error
        return Pod.parse(made)

    def _completed(self, workload: Workload, answer: "Pod | ApiError") -> Workload:
        if isinstance(answer, Pod):
            self._answered.add(workload.key)
            added = answer.metadata
            metadata = replace(
                workload.pod.metadata, labels=added.labels, annotations=added.annotations
            )
            return replace(workload, pod=Pod(metadata, answer.spec))
        # What has no place only stands, or is of an older tree: nobody could mend it there.
        if workload.place and is_verdict(answer):
            self.errors.append(f"{workload.place}: the API server refuses it: {answer}")
        self._instead[_because(answer)].add(workload.key)
        return replace(workload, pod=admitted_pod(workload.pod))


def is_verdict(error: "ApiError") -> bool:
    """Whether the API server refuses the Pod itself, and not the question."""
    text = str(error)
    return error.code in _REFUSED and not any(words in text for words in _NO_VERDICT)


def _alike(pod: Pod) -> str:
    manifest = manifest_of(pod)
    manifest["metadata"]["generateName"] = ""
    return json.dumps(manifest, sort_keys=True)


def _because(error: "ApiError") -> str:
    """Return why the API server did not answer for a Pod, without the Pod's name."""
    from backends.kube.errors import Forbidden, NotFound

    match error:
        case Forbidden() if "cannot create" in str(error):
            return "you may not create Pods there, not even as a dry run"
        case NotFound():
            return "their namespace does not exist yet"
        case _:
            return f"the dry run failed: {error}"


def _told(answered: Collection[Key], instead: Mapping[str, Collection[Key]]) -> list[str]:
    told = [f"{len(answered)} by a dry run of the API server"] if answered else []
    return told + [
        f"{len(keys)} by podsnap's own rules, because {why}"
        for why, keys in instead.items()
        if keys
    ]
