# SPDX-License-Identifier: Apache-2.0
"""When Pods became what, by one client's clock.

A Pod's own conditions have whole seconds, and the kubelet's clock need not be ours; so one watch
sees everything and stamps what it sees. What is measured includes the watch's own delay of a few
milliseconds, on both sides of a comparison alike.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.clock import SystemClock
from backends.kube.client import PODS, KubeClient
from backends.kube.reflector import Reflector
from backends.kube.transport import Transport
from schemas.names import POD_RESTORED
from schemas.pod import Pod


class PodWaitError(Exception):
    """Pods did not become what was waited for; the text says what they are."""


@dataclass(slots=True)
class Observed:
    """One Pod and the instants (monotonic seconds) at which it was first seen so."""

    pod: Pod
    created_s: float
    running_s: float | None = None
    ready_s: float | None = None
    restored_s: float | None = None
    restored_when_ready: bool = False
    outcomes: list[str] = field(default_factory=list)

    @property
    def create_to_ready_s(self) -> float:
        """Seconds from creation to Ready; infinite if it is not."""
        return self.ready_s - self.created_s if self.ready_s else float("inf")

    @property
    def create_to_running_s(self) -> float:
        """Seconds from creation to Running; infinite if it is not."""
        return self.running_s - self.created_s if self.running_s else float("inf")

    @property
    def is_restored(self) -> bool:
        """Whether the Pod says that it was restored."""
        return self.restored_s is not None


class PodTimes:
    """Watches the Pods of one namespace."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        """Nothing is seen before ``start``."""
        self._clock = SystemClock()
        self._changed = threading.Condition()
        self._seen: dict[str, Observed] = {}
        self._reflector: Reflector[Pod] = Reflector(
            client, PODS, project=Pod.parse, namespace=namespace, on_change=self._on_change
        )

    def start(self) -> None:
        """Begin to watch; Pods that exist already have no meaningful creation instant."""
        self._reflector.start()
        self._reflector.synced.wait(10)

    def stop(self) -> None:
        """End the watch."""
        self._reflector.stop()

    def pods(self, app: str) -> list[Observed]:
        """Return the Pods with label ``app`` that exist now, oldest first."""
        with self._changed:
            alive = {p.metadata.uid for p in self._reflector.store.items()}
            return [
                o
                for uid, o in self._seen.items()
                if uid in alive
                and o.pod.metadata.labels.get("app") == app
                and not o.pod.metadata.is_deleting
            ]

    def wait(
        self,
        what: str,
        found: Callable[[], Any],
        *,
        limit_s: float,
        tick: Callable[[float], None] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever ``found`` returns
        """Wait until ``found`` returns something true, and return that.

        Raises:
            PodWaitError: it did not within ``limit_s`` seconds.
        """
        began_s = self._clock.monotonic_s()
        with self._changed:
            while not (result := found()):
                waited_s = self._clock.monotonic_s() - began_s
                if waited_s > limit_s:
                    raise PodWaitError(
                        f"waited {limit_s:.0f} s in vain for {what}; the Pods are: "
                        + (", ".join(map(_described, self._seen.values())) or "none")
                    )
                if tick:
                    tick(waited_s)
                self._changed.wait(0.5)
        return result

    def wait_ready(
        self,
        app: str,
        count: int,
        *,
        limit_s: float,
        tick: Callable[[float], None] | None = None,
    ) -> list[Observed]:
        """Wait until exactly ``count`` Pods of an app exist and all are Ready."""

        def found() -> list[Observed]:
            pods = self.pods(app)
            good = len(pods) == count and all(p.pod.is_ready for p in pods)
            return pods if good else []

        ready: list[Observed] = self.wait(
            f"{count} ready Pods of {app}", found, limit_s=limit_s, tick=tick
        )
        return ready

    def _on_change(self, _: Pod | None, new: Pod | None) -> None:
        with self._changed:
            if new is not None:
                self._note(new)
            self._changed.notify_all()

    def _note(self, pod: Pod) -> None:
        now_s = self._clock.monotonic_s()
        seen = self._seen.setdefault(pod.metadata.uid, Observed(pod, now_s))
        seen.pod = pod
        if pod.phase == "Running" and seen.running_s is None:
            seen.running_s = now_s
        restored = pod.conditions.get(POD_RESTORED)
        if restored is not None:
            seen.outcomes.append(restored.reason)
            if restored.is_true and seen.restored_s is None:
                seen.restored_s = now_s
        if pod.is_ready and seen.ready_s is None:
            seen.ready_s = now_s
            seen.restored_when_ready = seen.restored_s is not None


@contextmanager
def watching(kubeconfig: Path, namespace: str) -> Iterator[PodTimes]:
    """Watch the Pods of a namespace as the kubeconfig's user."""
    transport = Transport.from_kubeconfig(kubeconfig, user_agent="podsnap-observer")
    times = PodTimes(KubeClient(transport), namespace)
    times.start()
    try:
        yield times
    finally:
        times.stop()
        transport.close()


def _described(seen: Observed) -> str:
    pod = seen.pod
    state = "Ready" if pod.is_ready else pod.phase or "no phase"
    return f"{pod.metadata.name} ({state})"
