# SPDX-License-Identifier: Apache-2.0
"""A cache of one kind, kept by list and watch (model: client-go's reflector).

Objects are projected to typed values as they arrive, so that the cache holds what is used and
nothing more. The traps: a delete that happens between two watches is seen only by comparing a new
list with the store; "too old" comes as an HTTP status or as an event inside the stream; and a quiet
watch is not a broken one.
"""

import logging
import random
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from backends.kube.client import KubeClient, Resource
from backends.kube.errors import ApiError, Gone, from_status
from backends.kube.transport import Stream

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 15.0
_DOUBLINGS = 16  # more than enough to reach the last one; 2.0**1024 would raise
_HEALTHY_S = 5.0


class Store(Generic[T]):
    """The objects by name and by UID. Values are shared: do not change them."""

    def __init__(self) -> None:
        """Begin empty."""
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], tuple[str, T]] = {}
        self._keys: dict[str, tuple[str, str]] = {}

    def get(self, namespace: str, name: str) -> T | None:
        """Return the object of that name; the namespace is empty for cluster scope."""
        with self._lock:
            found = self._values.get((namespace, name))
            return found[1] if found else None

    def by_uid(self, uid: str) -> T | None:
        """Return the object with that UID."""
        with self._lock:
            key = self._keys.get(uid)
            return self._values[key][1] if key else None

    def items(self) -> list[T]:
        """Return all objects, as they are now."""
        with self._lock:
            return [value for _, value in self._values.values()]

    def put(self, key: tuple[str, str], uid: str, value: T) -> T | None:
        """Store an object; returns the one it replaces."""
        with self._lock:
            old = self._values.get(key)
            if old is not None:
                self._keys.pop(old[0], None)
            self._values[key] = (uid, value)
            self._keys[uid] = key
            return old[1] if old else None

    def remove(self, key: tuple[str, str]) -> T | None:
        """Forget an object; returns it."""
        with self._lock:
            old = self._values.pop(key, None)
            if old is None:
                return None
            self._keys.pop(old[0], None)
            return old[1]

    def uid_of(self, key: tuple[str, str]) -> str | None:
        """Return the UID under a name."""
        with self._lock:
            found = self._values.get(key)
            return found[0] if found else None

    def keys(self) -> set[tuple[str, str]]:
        """Return the names of all objects."""
        with self._lock:
            return set(self._values)


class Reflector(Generic[T]):
    """Keeps a store equal to the API server's objects, in a thread of its own.

    ``on_change`` is called with (old, new) after the store changed, in that thread; it may be set
    until ``start``.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        project: Callable[[dict[str, Any]], T],
        namespace: str | None = None,
        field_selector: str | None = None,
        on_change: Callable[[T | None, T | None], None] | None = None,
    ) -> None:
        """Nothing is read before ``start``."""
        self.store: Store[T] = Store()
        self.synced = threading.Event()
        self.on_change = on_change
        self._client = client
        self._resource = resource
        self._project = project
        self._namespace = namespace
        self._field_selector = field_selector
        self._stopped = threading.Event()
        self._stream: Stream | None = None
        self._contact_s = _monotonic_s()
        self._version = ""
        self._thread = threading.Thread(
            target=self._run, name=f"reflector-{resource.plural}", daemon=True
        )

    def start(self) -> None:
        """Begin to list and watch."""
        self._thread.start()

    def stop(self) -> None:
        """End within a second."""
        self._stopped.set()
        stream = self._stream
        if stream is not None:
            stream.stop()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def seconds_since_contact(self) -> float:
        """Return how long ago the API server last said anything (bookmarks come every minute)."""
        return _monotonic_s() - self._contact_s

    def _run(self) -> None:
        short_lives = 0
        while not self._stopped.is_set():
            began_s = _monotonic_s()
            why, patience_s = "it ended", None
            try:
                if not self._version:
                    self._list()
                self._watch()
            except Gone as error:
                self._version, why = "", str(error)
            except ApiError as error:
                why, patience_s = str(error), error.retry_after_s
            # A watch that lived for a while is opened again at once; one that does not, ever later.
            if _monotonic_s() - began_s > _HEALTHY_S:
                short_lives = 0
                continue
            delay_s = min(_FIRST_BACKOFF_S * 2.0 ** min(short_lives, _DOUBLINGS), _LAST_BACKOFF_S)
            delay_s *= random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret
            short_lives += 1
            if not self._stopped.wait(patience_s or delay_s):
                log.info("watching %s again: %s", self._resource.plural, why)

    def _list(self) -> None:
        items, version = self._client.list(
            self._resource, namespace=self._namespace, field_selector=self._field_selector
        )
        self._contact_s = _monotonic_s()
        seen = set()
        for item in items:
            seen.add(_key(item))
            self._put(item)
        for key in self.store.keys() - seen:
            self._remove(key)
        self._version = version
        self.synced.set()

    def _watch(self) -> None:
        stream = self._client.watch(
            self._resource,
            resource_version=self._version,
            namespace=self._namespace,
            field_selector=self._field_selector,
        )
        self._stream = stream
        try:
            if self._stopped.is_set():
                stream.stop()
            for event in stream:
                self._contact_s = _monotonic_s()
                self._handle(event)
        finally:
            self._stream = None

    def _handle(self, event: dict[str, Any]) -> None:
        kind, obj = event["type"], event["object"]
        if kind == "ERROR":
            raise from_status(int(obj.get("code") or 500), obj)
        self._version = obj["metadata"]["resourceVersion"]
        if kind == "DELETED":
            self._remove(_key(obj))
        elif kind != "BOOKMARK":
            self._put(obj)

    def _put(self, obj: dict[str, Any]) -> None:
        try:
            value = self._project(obj)
        except (KeyError, ValueError, TypeError) as error:
            # The schema should have kept it out; one such object must not blind us for the rest.
            log.warning("%s %s cannot be read: %r", self._resource.kind, _key(obj), error)
            return
        key, uid = _key(obj), obj["metadata"]["uid"]
        if self.store.uid_of(key) not in {None, uid}:
            self._remove(key)  # another object of that name: the old one's end was missed
        old = self.store.put(key, uid, value)
        if old != value:
            self._tell(old, value)

    def _remove(self, key: tuple[str, str]) -> None:
        old = self.store.remove(key)
        if old is not None:
            self._tell(old, None)

    def _tell(self, old: T | None, new: T | None) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change(old, new)
        except Exception:
            log.exception("a listener of %s failed", self._resource.plural)


class ReflectorSet:
    """Several caches that live and are judged together."""

    def __init__(self, *reflectors: Reflector[Any]) -> None:
        """Nothing is watched before ``start``."""
        self._reflectors = reflectors

    def start(self) -> None:
        """Begin to watch."""
        for reflector in self._reflectors:
            reflector.start()

    def stop(self) -> None:
        """End all watches."""
        for reflector in self._reflectors:
            reflector.stop()

    def is_synced(self) -> bool:
        """Whether every cache was filled once."""
        return all(r.synced.is_set() for r in self._reflectors)


def _key(obj: dict[str, Any]) -> tuple[str, str]:
    metadata = obj["metadata"]
    return (metadata.get("namespace", ""), metadata["name"])


def _monotonic_s() -> float:
    from backends.clock import SystemClock

    return SystemClock().monotonic_s()
