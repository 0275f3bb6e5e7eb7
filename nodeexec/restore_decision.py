# SPDX-License-Identifier: Apache-2.0
"""Restore or cold? Asked once per sandbox, while the kubelet waits.

The answer says everything the runtime needs to finish alone: it never has to ask again. An image
that is not on the node yet is fetched within a bound; whatever takes longer, or fails, or is not
certain, is a cold start with the reason on the Pod.
"""

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from backends.clock import Clock
from backends.objects.interface import ObjectStore, StoreError
from nodeexec.background_loads import BackgroundLoads, LoadError
from nodeexec.bucket_stores import BucketUse
from nodeexec.cluster_view import ClusterView
from nodeexec.decision import Decision
from nodeexec.fetch_rate import FetchRate
from nodeexec.mounted_content import ContentError, MountedContent
from nodeexec.node_cache import FetchError, NodeCache, TooLargeError
from nodeexec.part_download import DamagedError
from nodeexec.restore_progress import RunningRestores
from policies.loading import ASSUMED_REREAD_BYTES_PER_S, loads_in_background
from policies.matching import Candidate, Choice, awaited, choose
from policies.verdict import Reason
from schemas.instants import parse_time
from schemas.pod import Pod
from schemas.policy import Policy, TriggerType
from schemas.policy_options import GATE_LIMIT_S
from schemas.restore_times import RestoreTimes
from schemas.snapshot import Compatibility, Snapshot
from schemas.token_request import Role
from statemachine.restore import Outcome

log = logging.getLogger(__name__)

# The successor of a Pod that was saved when it went waits without an opt-in.
_SUCCESSOR_GATE_S: Final = 30.0
# Of one small object.
_SIGNATURE_LIMIT_S: Final = 10.0
# What a load needs until its Pod can run: the end of the fetch before it, small parts, a process.
_LOAD_START_S: Final = 30.0
# Of little time a fetch has this much all the same.
_FETCH_SHARE: Final = 0.5

T = TypeVar("T")


@dataclass(slots=True)
class RestoreDecider:
    """Decides for this node."""

    view: ClusterView
    cache: NodeCache
    node: Compatibility
    workload_dirs: Path
    open_store: Callable[[BucketUse], ObjectStore]
    on_damage: Callable[[Snapshot, str], None]
    progress: RunningRestores
    contents: MountedContent
    clock: Clock
    # ``None`` where images cannot be mounted: every image is fetched first.
    loads: BackgroundLoads | None = None
    # Called with the bytes of each fetch, and the seconds that they took.
    on_fetched: Callable[[int, float], None] = lambda _bytes, _took_s: None
    # Called for each restore with whether its image was on the node already.
    on_looked: Callable[[bool], None] = lambda _was_here: None
    # Tells why an image with a manifest of this digest is not trusted, nothing if it is.
    signature_refusal: Callable[[Path, str], str] = lambda _image, _digest: "no key is known here"
    _changed: threading.Condition = field(default_factory=threading.Condition)
    # Ends what is under way: the next agent fetches anew.
    stopped: threading.Event = field(default_factory=threading.Event)
    _running: dict[str, Future[Path]] = field(default_factory=dict)
    _rate: FetchRate = field(default_factory=FetchRate)
    # UIDs of snapshots whose fetch is given up for a load.
    _loaded_instead: set[str] = field(default_factory=set)
    # When the fetch of each snapshot began, when all bytes were here, when they were verified.
    _fetched: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def decide(
        self,
        *,
        namespace: str,
        name: str,
        uid: str,
        sandbox: str,
        cold: Mapping[str, Any] | None,
        hold: Callable[[float], None],
    ) -> Decision:
        """Decide for a sandbox that is being created.

        ``cold`` is the record of an earlier failed restore of this Pod; ``hold`` is called with a
        number of seconds if the answer has to wait for a save or a fetch.
        """
        asked_s = self._now_s()
        decision = self._decide(namespace, name, uid, cold, hold)
        if decision.times is not None:
            decision = replace(decision, times=replace(decision.times, asked_s=asked_s))
        if decision.pod is not None and decision.policy is not None:
            self.contents.note(sandbox, decision.pod, decision.policy)
            # Last, because nobody owns the directory until the runtime has the answer.
            internal = self._internal(decision.policy, sandbox)
            decision = replace(decision, internal=internal, enable=bool(internal))
        return decision

    def snapshot_changed(self) -> None:
        """Wake up whoever waits for a snapshot in the making."""
        with self._changed:
            self._changed.notify_all()

    def prefetch(self, pod: Pod) -> None:
        """Begin to fetch what a Pod bound to this node will be restored from."""
        policy = self.view.policy_of(pod)
        if policy is None:
            return
        snapshot = self.fitting(pod, policy)
        if self.loads is not None and self.loads.is_full():
            return  # it has the choice when it asks
        if snapshot is not None and self.cache.lookup(snapshot) is None:
            self._fetch(snapshot, pod, policy, GATE_LIMIT_S)

    def learn_rate(self, size_bytes: int, took_s: float) -> None:
        """Learn from a load how fast this node fetches."""
        self._rate.note(size_bytes, took_s)

    def keep_only(self, snapshots: set[str]) -> None:
        """Forget the fetches of snapshots that are gone, by their UIDs."""
        for uid in self._fetched.keys() - snapshots:
            self._fetched.pop(uid, None)

    def fitting(self, pod: Pod, policy: Policy) -> Snapshot | None:
        """Return what a Pod would be restored from now, as far as is known."""
        try:
            candidate = self._candidate(pod, policy)
        except ContentError:
            return None  # its volumes are not mounted yet
        return choose(candidate, self.view.snapshots.store.items()).snapshot

    def _decide(
        self,
        namespace: str,
        name: str,
        uid: str,
        cold: Mapping[str, Any] | None,
        hold: Callable[[float], None],
    ) -> Decision:
        if not self.view.is_synced():
            text = "the agent has just started and does not know the cluster yet"
            return Decision(cause=Reason.AGENT_AWAY, reason=text)
        pod = self.view.pod(namespace, name, uid)
        if pod is None:
            text = "the API server does not know the Pod with this UID (yet)"
            return Decision(cause=Reason.POD_NOT_FOUND, reason=text)
        policy = self.view.policy_of(pod)
        if policy is None:
            return Decision(pod=pod, cause=Reason.NOT_GOVERNED, reason="no policy governs the Pod")
        base = Decision(pod=pod, policy=policy)
        if cold is not None:
            return self._after_failure(base, cold)
        storage = self.view.storage_of(policy)
        if storage is not None and (text := storage.refusal(namespace)):
            return _despite(base, Reason.STORAGE_NOT_ALLOWED, text)
        ends_s = self.clock.monotonic_s() + GATE_LIMIT_S
        if policy.options.strict:
            hold(GATE_LIMIT_S + 1)  # its digests are slow on purpose
        try:
            candidate = self._candidate(pod, policy)
        except ContentError as error:
            return _despite(base, Reason.CONTENT_UNKNOWN, str(error))
        choice, gating_s = self._choice(candidate, hold)
        if choice.snapshot is None:
            outcome = Outcome.COLD_DESPITE_SNAPSHOT if choice.noteworthy else Outcome.COLD
            return replace(base, outcome=outcome, cause=choice.cause, reason=choice.reason)
        now_s = self._now_s()
        times = RestoreTimes(
            namespace=pod.metadata.namespace,
            pod_name=pod.metadata.name,
            pod_uid=pod.metadata.uid,
            node=pod.node_name,
            decided_s=gating_s or now_s,
            gating_s=gating_s,
            gated_s=now_s if gating_s else 0.0,
        )
        return self._with_image(pod, replace(base, times=times), choice.snapshot, hold, ends_s)

    def _choice(self, candidate: Candidate, hold: Callable[[float], None]) -> tuple[Choice, float]:
        """Choose a snapshot; behind the gate, wait for one that is in the making.

        Returns since when it waited, too, 0 if it did not.
        """
        policy, store = candidate.policy, self.view.snapshots.store
        goes = policy.stops or policy.trigger_type is TriggerType.ON_DELETE
        gate_s = policy.options.gate_s or (_SUCCESSOR_GATE_S if goes else 0.0)
        choice = choose(candidate, store.items())
        if not gate_s or awaited(candidate, store.items()) is None:
            return choice, 0.0
        hold(GATE_LIMIT_S + 1)
        gating_s = self._now_s()
        with self._changed:
            self._changed.wait_for(lambda: awaited(candidate, store.items()) is None, gate_s)
        late = awaited(candidate, store.items())
        choice = choose(candidate, store.items())
        if late is None or choice.snapshot is not None:
            return choice, gating_s
        text = f"PodSnapshot {late.metadata} was not ready within the gate's {gate_s:g} s"
        return Choice(None, Reason.GATE_TIMED_OUT, text), gating_s

    def _with_image(
        self,
        pod: Pod,
        base: Decision,
        snapshot: Snapshot,
        hold: Callable[[float], None],
        ends_s: float,
    ) -> Decision:
        uid = snapshot.metadata.uid
        untold = replace(base, unfetched=snapshot)
        looking_s = self._now_s()
        image = self.cache.lookup(snapshot)
        looked_s = self._now_s()
        was_here = image is not None
        self.on_looked(was_here)
        image = image or self._on_its_way(snapshot, pod)
        if image is None:
            hold(GATE_LIMIT_S + 1)
            left_s = max(ends_s - self.clock.monotonic_s(), 0)
            try:
                with self.progress.fetching(pod, snapshot):
                    image = self._brought(snapshot, pod, base.policy, left_s)
            except DamagedError as error:
                text = f"PodSnapshot {snapshot.metadata}: {error}"
                return _despite(untold, Reason.BYTES_DAMAGED, text)
            except FetchError as error:
                text = f"PodSnapshot {snapshot.metadata}: {error}"
                return _despite(untold, Reason.FETCH_FAILED, text)
            except FutureTimeoutError:
                text = (
                    f"PodSnapshot {snapshot.metadata} was not fetched within {left_s:.0f} s; the "
                    "fetch goes on for later Pods"
                )
                return _despite(untold, Reason.FETCH_TOO_SLOW, text)
        digest = snapshot.capture.manifest_digest if snapshot.capture else ""
        if base.policy is not None and base.policy.options.requires_signature:
            refusal = self.signature_refusal(image, digest)
            if refusal and self.cache.is_on_disk(snapshot):
                hold(GATE_LIMIT_S + 1)
                self._renew_signature(snapshot, pod, ends_s)
                refusal = self.signature_refusal(image, digest)
            if refusal:
                text = f"PodSnapshot {snapshot.metadata}: {refusal}"
                return _despite(untold, Reason.UNTRUSTED, text)
        decision = replace(
            base,
            outcome=Outcome.RESTORED,
            snapshot=snapshot,
            image_dir=image,
            background=self.loads is not None and self.loads.is_load(image),
        )
        if decision.times is None:
            return decision
        times = decision.times
        began_s, came_s, ended_s = self._fetched.get(uid, (0.0, 0.0, 0.0))
        verified = (looking_s, looked_s) if was_here else (came_s, ended_s)
        times = replace(times, verifying_s=verified[0], verified_s=verified[1])
        created = parse_time(pod.metadata.creation_timestamp)
        # It waited for them, or its arrival had them fetched.
        if not was_here or (created is not None and began_s >= created.timestamp()):
            times = replace(times, fetching_s=began_s, fetched_s=came_s)
        return replace(decision, times=times)

    def _after_failure(self, base: Decision, cold: Mapping[str, Any]) -> Decision:
        reason = str(cold.get("reason", ""))
        return replace(base, outcome=Outcome.FELL_BACK, cause=Reason.RESTORE_FAILED, reason=reason)

    def _internal(self, policy: Policy, sandbox: str) -> dict[str, str]:
        if policy.trigger_type is not TriggerType.WORKLOAD:
            return {}
        directory = self.workload_dirs / sandbox
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        return {
            "checkpoint.path": str(directory),
            "checkpoint.resume": "true",
            "checkpoint.compression": "none",
            "checkpoint.exclude-committed-zero-pages": "true",
        }

    def _candidate(self, pod: Pod, policy: Policy) -> Candidate:
        identity = self.contents.identity(pod, policy)
        return Candidate(pod=pod, policy=policy, identity=identity, node=self.node)

    def _fetch(
        self, snapshot: Snapshot, pod: Pod, policy: Policy | None, left_s: float
    ) -> Future[Path]:
        uid = snapshot.metadata.uid
        running = self._running.get(uid)
        if running is None or running.done():
            self._running = {u: f for u, f in self._running.items() if not f.done()}
            option = policy.options.background if policy else None
            running = _begun(lambda: self._fetch_now(snapshot, pod, option, left_s))
            self._running[uid] = running
        return running

    def _brought(self, snapshot: Snapshot, pod: Pod, policy: Policy | None, left_s: float) -> Path:
        """Wait for an image. A fetch that will not be over in time is replaced by a load.

        Raises:
            DamagedError, FetchError: as the fetch.
            FutureTimeoutError: it did not come.
        """
        uid, ends_s = snapshot.metadata.uid, self.clock.monotonic_s() + left_s
        fetch = self._fetch(snapshot, pod, policy, left_s)
        if not self._can_load(snapshot):
            return fetch.result(timeout=left_s)
        try:
            return fetch.result(timeout=max(left_s - _LOAD_START_S, left_s * _FETCH_SHARE))
        except FutureTimeoutError:
            log.warning("PodSnapshot %s is loaded: its fetch is too slow", snapshot.metadata)
            self._loaded_instead.add(uid)
        except FetchError:
            if uid not in self._loaded_instead:
                raise
        load = _begun(lambda: self._load_instead(snapshot, _use(snapshot, pod), fetch))
        return load.result(timeout=max(ends_s - self.clock.monotonic_s(), 0))

    def _load_instead(self, snapshot: Snapshot, use: BucketUse, fetch: Future[Path]) -> Path:
        try:
            with contextlib.suppress(FetchError):
                return fetch.result()  # it came after all, or is a load itself
            if self.loads is None:
                raise FetchError("nothing can be mounted on this node")
            return self.loads.start(snapshot, use)
        finally:
            self._loaded_instead.discard(snapshot.metadata.uid)

    def _can_load(self, snapshot: Snapshot) -> bool:
        """Whether an image has memory that this node could load behind the running Pod."""
        capture = snapshot.capture
        return self.loads is not None and capture is not None and not capture.rootfs_only

    def _fetch_now(
        self,
        snapshot: Snapshot,
        pod: Pod,
        option: bool | None,  # noqa: FBT001 - a policy's three-way option
        left_s: float,
    ) -> Path:
        uid = snapshot.metadata.uid
        began_s, came_s, came_bytes = self._now_s(), 0.0, 0

        def came(done_bytes: int, total_bytes: int) -> None:
            nonlocal came_s, came_bytes
            came_s, came_bytes = self._now_s(), done_bytes
            self.progress.fetched(uid, done_bytes, total_bytes)

        try:
            use = _use(snapshot, pod)
            image = self._begun_load(snapshot, use, option, left_s)
            if image is not None:
                return image
            try:
                image = self.cache.fetch(
                    snapshot,
                    lambda: self.open_store(use),
                    on_progress=came,
                    cancelled=lambda: self._is_over(snapshot),
                )
            except TooLargeError:
                if self.loads is None or not self._can_load(snapshot):
                    raise
                image = self.loads.start(snapshot, use)  # served, and not kept
        except DamagedError as error:
            self.on_damage(snapshot, str(error))
            raise
        if came_bytes:  # nothing comes if it was here after all
            self._fetched[uid] = (began_s, came_s, self._now_s())
            self._rate.note(came_bytes, came_s - began_s)
            self.on_fetched(came_bytes, max(came_s - began_s, 0.0))
        return image

    def _is_over(self, snapshot: Snapshot) -> bool:
        """Whether nobody needs the bytes that are being fetched."""
        found = self.view.snapshots.store.get(*snapshot.metadata.key)
        is_there = found is not None and found.metadata.uid == snapshot.metadata.uid
        is_loaded = snapshot.metadata.uid in self._loaded_instead
        return self.stopped.is_set() or not is_there or is_loaded

    def _on_its_way(self, snapshot: Snapshot, pod: Pod) -> Path | None:
        try:
            return self.loads.running(snapshot, _use(snapshot, pod)) if self.loads else None
        except (DamagedError, FetchError):
            return None  # the fetch finds the same, and tells

    def _renew_signature(self, snapshot: Snapshot, pod: Pod, ends_s: float) -> None:
        """Look whether an image was signed since it came here."""
        left_s = max(min(ends_s - self.clock.monotonic_s(), _SIGNATURE_LIMIT_S), 0)
        renewal = _begun(
            lambda: self.cache.renew_signature(snapshot, self.open_store(_use(snapshot, pod)))
        )
        with contextlib.suppress(StoreError, FetchError, OSError, FutureTimeoutError):
            renewal.result(timeout=left_s)

    def _begun_load(
        self,
        snapshot: Snapshot,
        use: BucketUse,
        option: bool | None,  # noqa: FBT001 - as above
        left_s: float,
    ) -> Path | None:
        """Begin to load an image in the background; ``None`` if it is to be fetched first."""
        capture = snapshot.capture
        if self.loads is None or capture is None or not self._can_load(snapshot):
            return None
        if (image := self.loads.running(snapshot, use)) is not None:
            return image
        # An image from before the last boot is only read again, if there is time for that.
        is_here = self.cache.is_on_disk(snapshot)
        if not loads_in_background(
            False if is_here or self.loads.is_full() else option,
            size_bytes=capture.size_bytes,
            bytes_per_s=ASSUMED_REREAD_BYTES_PER_S if is_here else self._rate.bytes_per_s,
            left_s=left_s,
        ):
            return None
        try:
            return self.loads.start(snapshot, use)
        except LoadError as error:
            log.warning("PodSnapshot %s is fetched first: %s", snapshot.metadata, error)
            return None

    def _now_s(self) -> float:
        return self.clock.now().timestamp()


def _use(snapshot: Snapshot, pod: Pod) -> BucketUse:
    capture = snapshot.capture
    if capture is None or capture.location is None:
        raise FetchError("the snapshot records no place of its bytes")
    return BucketUse(capture.location, Role.RESTORE, snapshot, pod.metadata.name, pod.metadata.uid)


def _begun(work: Callable[[], T]) -> Future[T]:
    """Do something in a thread that an agent which ends does not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is whoever asks for the result's
            future.set_exception(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return future


def _despite(base: Decision, cause: Reason, reason: str) -> Decision:
    return replace(base, outcome=Outcome.COLD_DESPITE_SNAPSHOT, cause=cause, reason=reason)
