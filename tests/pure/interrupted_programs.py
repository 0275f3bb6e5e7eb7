# SPDX-License-Identifier: Apache-2.0
"""The controller and the agent of a node, run step by step in the test's own thread.

They are the real ones, down to their caches, queues and preconditions; the test says when a watch
event arrives and when a key is worked off. Whenever one of them asks something of its surroundings
it takes a *breath*: others act there, and there it notices that it was killed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, cast

import orjson
from api_objects import NODE
from modelled_surroundings import (
    BucketLine,
    Line,
    ModelledApi,
    ModelledBucket,
    ModelledRunsc,
    Object,
)

from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.errors import ApiError
from backends.kube.events import EventRecorder
from backends.kube.reflector import Reflector
from backends.kube.transport import Transport
from backends.objects.factory import BucketAccess
from backends.objects.interface import StoreError
from backends.work_queue import WorkQueue
from nodeexec.agent import Agent
from nodeexec.capture import Capturer, StoppedError
from nodeexec.capture_status import CaptureStatus
from nodeexec.cluster_view import ClusterView, Listeners
from nodeexec.image_ids import ImageIds
from nodeexec.metrics import AgentMetrics
from nodeexec.node_cache import NodeCache
from nodeexec.pause_estimate import PauseEstimate
from nodeexec.pod_reports import PodReports
from nodeexec.runsc import Runsc
from nodeexec.sandboxes import PreparedSandbox
from nodeexec.saves import NodeSaves, SandboxLocks
from nodeexec.settings import AgentSettings
from nodeexec.stopping import Stopper
from policies.new_snapshots import parting_snapshot
from reconciler.manager import Manager, ManagerSettings
from schemas.instants import to_micro_time
from schemas.metadata import Metadata
from schemas.names import READY
from schemas.pod import Pod
from schemas.policy import TriggerType
from schemas.snapshot import Snapshot
from schemas.storage_config import Location

NAMESPACE: Final = "shop"
NAME: Final = "11111111-1111-5111-8111-111111111111"
CLUSTER: Final = "c1"
_METRICS = AgentMetrics()


class Surroundings(Protocol):
    """What programs are in; ``acting`` are those that are in the middle of something.

    ``damaged`` are the UIDs of snapshots whose bytes an agent found wrong, ``unwanted`` of those
    that a user deleted.
    """

    api: ModelledApi
    bucket: ModelledBucket
    settings: Mapping[str, AgentSettings]
    now_s: float
    acting: list["Program"]
    damaged: set[str]
    unwanted: set[str]

    def instant(self) -> datetime:
        """Return the right time."""
        ...

    def breathe(self) -> None:
        """Let others act."""
        ...

    def uninterrupted(self) -> AbstractContextManager[None]:
        """Let nobody act until the end of the block."""
        ...

    def publish_node(self, node: str) -> None:
        """Write a node's Lease."""
        ...

    def pod(self, node: str) -> Object | None:
        """Return the Pod of a node."""
        ...

    def sandbox(self, node: str) -> PreparedSandbox | None:
        """Return that Pod's sandbox."""
        ...


class Killed(BaseException):
    """The program that is here was killed."""


class WorldClock:
    """One program's clock: its wall part may be wrong."""

    def __init__(self, world: Surroundings) -> None:
        """Begin with the right time."""
        self.off_s = 0.0
        self._world = world

    def now(self) -> datetime:
        """Return the wall clock as this program sees it."""
        return self._world.instant() + timedelta(seconds=self.off_s)

    def monotonic_s(self) -> float:
        """Return the seconds that passed."""
        return self._world.now_s

    def wait(self, event: Any, timeout_s: float) -> bool:  # noqa: ANN401 - a threading.Event
        """Nobody waits here."""
        raise NotImplementedError


class Program:
    """A process with caches. ``act`` runs a part of it until its end, or until it is killed."""

    def __init__(self, world: Surroundings) -> None:
        """Connect; nothing is read before ``start``."""
        self.world = world
        self.clock = WorldClock(world)
        self.is_alive = True
        self._is_busy = False
        self._seen: dict[Reflector[Any], int] = {}
        self.client = KubeClient(cast("Transport", Line(world.api, self.breathe)))
        self.bucket = BucketLine(world.bucket, self.breathe)

    @property
    def reflectors(self) -> Sequence[Reflector[Any]]:
        """Return the caches."""
        raise NotImplementedError

    def work(self) -> bool:
        """Handle one key that is due; returns whether there was one."""
        raise NotImplementedError

    def start(self) -> None:
        """Fill the caches."""
        self._seen = dict.fromkeys(self.reflectors, 0)
        for reflector in self.reflectors:
            self._relist(reflector)

    def breathe(self) -> None:
        """Let others act in the middle of what this program does."""
        self.world.breathe()
        if not self.is_alive:
            raise Killed

    def act(self, do: Callable[[], object]) -> bool:
        """Do something, unless the program is in the middle of something else or dead."""
        if self._is_busy or not self.is_alive:
            return False
        self._is_busy = True
        self.world.acting.append(self)
        try:
            return bool(do())
        except (Killed, ApiError, StoppedError):
            return False
        finally:
            self.world.acting.pop()
            self._is_busy = False

    def deliver(self, number: int) -> None:
        """Let one watch event arrive, of whichever cache has any."""
        late = [r for r in self.reflectors if self._seen[r] < len(self._log(r))]
        if late:
            self._deliver(late[number % len(late)])

    def deliver_all(self) -> None:
        """Let every watch event arrive."""
        for reflector in self.reflectors:
            while self._seen[reflector] < len(self._log(reflector)):
                self._deliver(reflector)

    def repeat(self, count: int) -> None:
        """Be connected to a server that is behind: the last events of every cache come again."""
        for reflector in self.reflectors:
            self._seen[reflector] = max(self._seen[reflector] - count, 0)
            if count and self._seen[reflector] < len(self._log(reflector)):
                self._deliver(reflector)

    def skip(self) -> None:
        """Miss events, and list anew."""
        for reflector in self.reflectors:
            self._relist(reflector)

    def _log(self, reflector: Reflector[Any]) -> list[tuple[str, bytes]]:
        return self.world.api.log[reflector._resource.plural]

    def _relist(self, reflector: Reflector[Any]) -> None:
        self._seen[reflector] = len(self._log(reflector))
        with self.world.uninterrupted():
            reflector._list()

    def _deliver(self, reflector: Reflector[Any]) -> None:
        kind, text = self._log(reflector)[self._seen[reflector]]
        self._seen[reflector] += 1
        obj = orjson.loads(text)
        node = (reflector._field_selector or "").removeprefix("spec.nodeName=")
        if not node or obj["spec"]["nodeName"] == node:
            reflector._handle({"type": kind, "object": obj})


class _Leading(Manager):
    """A manager that is told when to work, and which bucket there is."""

    def __init__(self, number: int, program: Program) -> None:
        self._bucket = program.bucket
        settings = ManagerSettings(
            CLUSTER, BucketAccess(), identity=f"controller-{number}", sweep_grace_s=20.0
        )
        super().__init__(settings, program.client, program.clock)

    def _store(self, location: Location) -> BucketLine:  # noqa: ARG002 - there is one bucket
        return self._bucket


class ControllerProgram(Program):
    """A controller that believes to lead. Of its queues some are worked off."""

    def __init__(self, world: Surroundings, number: int) -> None:
        """Wire everything, as ``Manager`` does."""
        super().__init__(world)
        self.manager = _Leading(number, self)
        self.start()

    @property
    def reflectors(self) -> Sequence[Reflector[Any]]:
        """Return the caches."""
        return self.manager.cache._reflectors

    def work(self) -> bool:
        """Handle one key that is due."""
        manager = self.manager
        controllers = (
            manager._snapshots,
            manager._deletions,
            manager._storage,
            manager._sweeps,
        )
        return any(work_off(c.queue, c.handle, self.clock) for c in controllers)

    def looks_again(self) -> bool:
        """Whether the snapshot will be looked at without any change."""
        queue = self.manager._snapshots.queue
        return queue.depth() > 0 or (NAMESPACE, NAME) in queue._due_at


class AgentProgram(Program):
    """The saving part of a node's agent."""

    def __init__(self, world: Surroundings, node: str) -> None:
        """Wire it, as ``Agent`` does; the node's disk is as the last one left it."""
        super().__init__(world)
        self.node = node
        self.settings = world.settings[node]
        self.runsc = ModelledRunsc(self.settings.runsc_root, NODE.runsc_version, self.breathe)
        runsc = cast("Runsc", self.runsc)
        events = EventRecorder(self.client, component="agent", instance=node)
        self.reports = PodReports(self.client, events, self.clock)
        self._view = ClusterView(
            self.client, node, Listeners(lambda *_: None, self._snapshot_changed)
        )
        capturer = Capturer(
            node=node,
            cluster_id=CLUSTER,
            staging=self.settings.staging_dir,
            compatibility=NODE,
            runsc=runsc,
            cache=NodeCache(self.settings.cache_dir),
            status=CaptureStatus(self.client, self.clock),
            stopper=Stopper(runsc, self.client, self.reports, self.settings.bundles_dir),
            estimate=PauseEstimate(),
            clock=self.clock,
            is_gone=lambda snapshot: Agent._is_gone(cast("Agent", self), snapshot),
        )
        self.saves = NodeSaves(
            settings=self.settings,
            compatibility=NODE,
            view=self._view,
            capturer=capturer,
            image_ids=cast("ImageIds", _KnownImages()),
            reports=self.reports,
            metrics=_METRICS,
            locks=SandboxLocks(),
            open_store=lambda _: self.bucket,
        )
        self.queue: WorkQueue[tuple[str, str]] = WorkQueue(self.clock)
        self.start()

    @property
    def reflectors(self) -> Sequence[Reflector[Any]]:
        """Return the caches."""
        return self._view._reflectors

    @property
    def snapshot(self) -> Snapshot | None:
        """Return the snapshot as this node sees it."""
        return self._view.snapshots.store.get(NAMESPACE, NAME)

    def work(self) -> bool:
        """Handle one key that is due."""
        return work_off(self.queue, self.saves.reconcile, self.clock)

    def scan(self) -> None:
        """Catch up on what was missed."""
        for key in self.saves.unfinished():
            self.queue.add(key)

    def beat(self) -> None:
        """Give a sign of life."""
        self.world.publish_node(self.node)

    def tell_damage(self) -> None:
        """Say that a fetch found wrong bytes, if this node would fetch."""
        if (seen := self.snapshot) is not None and _is_ready(seen):
            self.world.damaged.add(seen.metadata.uid)
            self.reports.damaged(seen, "pages.img is not what was saved")

    def tell_failed_restore(self, number: int) -> None:
        """Say that a restore failed, if this node would restore."""
        if (seen := self.snapshot) is not None and _is_ready(seen):
            pod = Pod(Metadata(f"replica-{number}", NAMESPACE, f"uid-replica-{number}"), {})
            self.reports.restore_failed(seen, pod, "bad fd")

    def part(self) -> None:
        """Save the Pod because it is deleted, once, as ``PartingSaves`` does."""
        raw, sandbox = self.world.pod(self.node), self.world.sandbox(self.node)
        if raw is None or sandbox is None:
            return
        pod = Pod.parse(raw)
        policy = self._view.policy_of(pod)
        if policy is None or policy.trigger_type is not TriggerType.ON_DELETE:
            return
        body = parting_snapshot(NAME, pod, policy, now=to_micro_time(self.clock.now()))
        made = self.client.create_once(POD_SNAPSHOTS, body, field_manager="agent")
        if made is not None:
            self.saves.save_parting(
                Snapshot.parse(made),
                pod,
                sandbox,
                ends_s=self.clock.monotonic_s() + 30,
                on_written=lambda: None,
            )

    def _snapshot_changed(self, old: Snapshot | None, new: Snapshot | None) -> None:
        found = new or old
        if found is not None and self.saves.concern(found):
            self.queue.add(found.metadata.key)


class _KnownImages:
    """What containerd knows."""

    def of_pod(self, pod: Pod) -> dict[str, str]:
        """Return an image ID for each container."""
        return {name: f"sha256:{name}" for name in pod.container_ids}


def work_off(
    queue: WorkQueue[Any], handle: Callable[[Any], float | None], clock: WorldClock
) -> bool:
    """Handle a key that is due as ``Workers`` do, but in this thread; whether there was one."""
    now_s = clock.monotonic_s()
    if not queue.depth() and all(due_s > now_s for due_s in queue._due_at.values()):
        return False
    key = queue.get()
    try:
        again_s = handle(key)
    except (ApiError, StoreError):
        queue.retry(key)
    else:
        queue.forget(key)
        if again_s is not None:
            queue.add_after(key, again_s)
    finally:
        queue.done(key)
    return True


def _is_ready(snapshot: Snapshot) -> bool:
    return READY in snapshot.conditions and snapshot.conditions[READY].is_true
