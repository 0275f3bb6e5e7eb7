# SPDX-License-Identifier: Apache-2.0
"""Events on objects (core/v1), as ``kubectl describe`` and ``get events`` find them.

Emitting never waits: a queue of bounded length is written by one thread, and when it is full the
oldest are dropped and counted. The same event again raises a count instead of making a new object.
"""

import hashlib
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from backends.clock import Clock, SystemClock
from backends.kube.client import EVENTS, KubeClient
from backends.kube.errors import ApiError, NotFound
from schemas.instants import to_time

log = logging.getLogger(__name__)

_QUEUE: Final = 1000
_REMEMBERED: Final = 4096
_SAME_FOR_S: Final = 600.0
_MESSAGE_LIMIT: Final = 1024


class EventRecorder:
    """Writes events under one component's name."""

    def __init__(
        self, client: KubeClient, *, component: str, instance: str, clock: Clock | None = None
    ) -> None:
        """Nothing is written before ``start``."""
        self.dropped = 0
        self._client = client
        self._component = component
        self._instance = instance
        self._clock = clock or SystemClock()
        self._waiting: queue.Queue[tuple[Mapping[str, str], str, str, str] | None]
        self._waiting = queue.Queue(_QUEUE)
        self._seen: OrderedDict[str, tuple[str, int, float, str]] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, for at most two seconds."""
        self._put(None)
        if self._thread.is_alive():
            self._thread.join(2.0)

    def emit(
        self, regarding: Mapping[str, str], event_type: str, reason: str, message: str
    ) -> None:
        """Queue an event; ``regarding`` has apiVersion, kind, namespace, name and uid."""
        self._put((regarding, event_type, reason, message[:_MESSAGE_LIMIT]))

    def _put(self, item: tuple[Mapping[str, str], str, str, str] | None) -> None:
        while True:
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                try:
                    self._waiting.get_nowait()
                    self.dropped += 1
                except queue.Empty:
                    continue
            else:
                return

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._write(*item)
            except ApiError as error:
                log.warning(
                    "an event on %s %s was not written: %s", item[0]["kind"], item[0]["name"], error
                )

    def _write(
        self, regarding: Mapping[str, str], event_type: str, reason: str, message: str
    ) -> None:
        same = hashlib.sha256(
            "\0".join([regarding["uid"], event_type, reason, message]).encode()
        ).hexdigest()
        now_s = self._clock.monotonic_s()
        name, count, at_s, first = self._seen.get(same, ("", 0, 0.0, ""))
        now = to_time(self._clock.now())
        if name and now_s - at_s < _SAME_FOR_S:
            patch = {"count": count + 1, "lastTimestamp": now}
            try:
                self._client.merge_patch(
                    EVENTS,
                    name,
                    patch,
                    namespace=regarding["namespace"],
                    field_manager=self._component,
                )
                self._remember(same, (name, count + 1, now_s, first))
            except NotFound:
                self._seen.pop(same, None)
            else:
                return
        suffix = format(self._clock.now().timestamp(), ".6f").replace(".", "")
        name = f"{regarding['name'][:200]}.{int(suffix):x}{same[:4]}"
        self._client.create(
            EVENTS,
            self._body(name, regarding, event_type, reason, message, now),
            field_manager=self._component,
        )
        self._remember(same, (name, 1, now_s, now))

    def _remember(self, same: str, value: tuple[str, int, float, str]) -> None:
        self._seen[same] = value
        self._seen.move_to_end(same)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _body(
        self,
        name: str,
        regarding: Mapping[str, str],
        event_type: str,
        reason: str,
        message: str,
        now: str,
    ) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": regarding["namespace"]},
            "involvedObject": dict(regarding),
            "type": event_type,
            "reason": reason,
            "message": message,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
