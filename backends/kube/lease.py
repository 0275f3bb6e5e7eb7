# SPDX-License-Identifier: Apache-2.0
"""Leases: who leads, and who lives (model: client-go's leader election).

Only local clocks are compared: a holder counts as alive for as long after *we saw* its record
change, whatever its own clock wrote. A lease does not fence: an old leader may still be writing
when a new one starts, so every effect must be idempotent or preconditioned anyway.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from backends.clock import Clock
from backends.kube.client import LEASES, KubeClient
from backends.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from schemas.instants import to_micro_time

log = logging.getLogger(__name__)

LEASE_DURATION_S: Final = 15.0
RENEW_DEADLINE_S: Final = 10.0
RETRY_PERIOD_S: Final = 2.0


class LeaderElection:
    """Competes for one lease until stopped; once lost it is lost for good."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_started: Callable[[], None],
        on_stopped: Callable[[], None],
        clock: Clock,
        annotations: Mapping[str, str] | None = None,
        lease_duration_s: float = LEASE_DURATION_S,
        renew_deadline_s: float = RENEW_DEADLINE_S,
        retry_period_s: float = RETRY_PERIOD_S,
    ) -> None:
        """Callbacks run in the election's thread; ``on_started`` must return soon.

        ``annotations`` are what the leader says of itself, on the lease.
        """
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._on_started = on_started
        self._on_stopped = on_stopped
        self._clock = clock
        self._annotations = dict(annotations or {})
        self._lease_duration_s = lease_duration_s
        self._renew_deadline_s = renew_deadline_s
        self._retry_period_s = retry_period_s
        self._leading = threading.Event()
        self._stopped = threading.Event()
        self._observed: dict[str, Any] = {}
        self._observed_at_s = float("-inf")
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)

    @property
    def is_leader(self) -> bool:
        """Whether this replica holds the lease."""
        return self._leading.is_set()

    def start(self) -> None:
        """Begin to compete."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and give a held lease back, so that the next leader need not wait."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        if self._leading.is_set():
            self._leading.clear()
            try:
                self._release()
            except ApiError as error:
                log.info("the lease could not be given back: %s", error)

    def _run(self) -> None:
        while not self._stopped.is_set() and not self._try():
            self._clock.wait(self._stopped, self._retry_period_s)
        if self._stopped.is_set():
            return
        self._leading.set()
        self._on_started()
        renewed_s = self._clock.monotonic_s()
        # Renewing well before the deadline, but not as often as one competes.
        while not self._clock.wait(self._stopped, self._renew_deadline_s / 2):
            # Counted from before the request: the server may have taken it long before it answers.
            asked_s = self._clock.monotonic_s()
            if self._try():
                renewed_s = asked_s
                continue
            while self._clock.monotonic_s() - renewed_s < self._renew_deadline_s:
                if self._clock.wait(self._stopped, self._retry_period_s / 2):
                    return
                asked_s = self._clock.monotonic_s()
                if self._try():
                    renewed_s = asked_s
                    break
            else:
                self._leading.clear()
                self._on_stopped()
                return

    def _try(self) -> bool:
        """Take or renew the lease; false if another holds it or the server does not answer."""
        now = to_micro_time(self._clock.now())
        try:
            lease = self._client.get(
                LEASES, self._name, namespace=self._namespace, timeout_s=self._retry_period_s
            )
        except NotFound:
            return self._create(now)
        except ApiError as error:
            log.info("the lease cannot be read: %s", error)
            return False
        spec = lease.get("spec") or {}
        if spec != self._observed:
            self._observed, self._observed_at_s = spec, self._clock.monotonic_s()
        holder = spec.get("holderIdentity") or ""
        age_s = self._clock.monotonic_s() - self._observed_at_s
        duration_s = float(spec.get("leaseDurationSeconds") or self._lease_duration_s)
        if holder not in {"", self._identity} and age_s < duration_s:
            return False
        mine = holder == self._identity
        transitions = int(spec.get("leaseTransitions") or 0) + (0 if mine else 1)
        said = lease["metadata"].get("annotations") or {}
        lease["metadata"]["annotations"] = {**said, **self._annotations}
        lease["spec"] = self._spec(
            now, acquired=spec.get("acquireTime") if mine else now, transitions=transitions
        )
        return self._replace(lease)

    def _create(self, now: str) -> bool:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "annotations": self._annotations,
            },
            "spec": self._spec(now, acquired=now, transitions=0),
        }
        try:
            self._client.create(LEASES, body, field_manager=self._identity)
        except (AlreadyExists, ApiError) as error:
            log.info("the lease was not created: %s", error)
            return False
        return True

    def _replace(self, lease: Mapping[str, Any]) -> bool:
        try:
            self._client.replace(
                LEASES, lease, field_manager=self._identity, timeout_s=self._retry_period_s
            )
        except Conflict:
            return False
        except ApiError as error:
            log.info("the lease was not renewed: %s", error)
            return False
        return True

    def _release(self) -> None:
        lease = self._client.get(LEASES, self._name, namespace=self._namespace)
        if lease["spec"].get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            lease["spec"]["leaseDurationSeconds"] = 1
            self._client.replace(LEASES, lease, field_manager=self._identity)

    def _spec(self, now: str, *, acquired: str | None, transitions: int) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(self._lease_duration_s),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }


class Heartbeat:
    """Renews a lease that nobody competes for: a sign of life with annotations."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        holder: str,
        annotations: Callable[[], Mapping[str, str]],
        period_s: float,
        clock: Clock,
    ) -> None:
        """``annotations`` is asked at every beat."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._holder = holder
        self._annotations = annotations
        self._period_s = period_s
        self._clock = clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; the lease stays and grows old."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def beat(self) -> None:
        """Renew once.

        Raises:
            ApiError: the server refused or did not answer.
        """
        self._client.apply(
            LEASES,
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": self._name,
                    "namespace": self._namespace,
                    "annotations": dict(self._annotations()),
                },
                "spec": {
                    "holderIdentity": self._holder,
                    "leaseDurationSeconds": int(self._period_s * 4),
                    "renewTime": to_micro_time(self._clock.now()),
                },
            },
            field_manager=f"heartbeat-{self._holder}"[:128],
            force=True,
        )

    def _run(self) -> None:
        while not self._stopped.is_set():
            delay_s = self._period_s
            try:
                self.beat()
            except ApiError as error:
                log.info("no sign of life could be given: %s", error)
                delay_s = min(1.0, self._period_s)
            self._clock.wait(self._stopped, delay_s)
