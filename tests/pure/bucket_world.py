# SPDX-License-Identifier: Apache-2.0
"""One bucket and all who touch it: two clusters whose snapshots have equal names, and a stranger.

Each cluster has two agents of one node (one was to be replaced and still runs) and two controllers
that both lead. They are the real upload with its composed parts, the real report of what was
stored, the real deletion of bytes and the real sweep; what is modelled is who asks them to.
"""

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

from api_objects import NODE
from interleaving import Interleaving, Move
from interrupted_programs import NAMESPACE, Program
from modelled_surroundings import BucketLine, ModelledApi, ModelledBucket, Object

from backends.kube.client import POD_SNAPSHOTS
from backends.kube.errors import Conflict, NotFound
from backends.objects.gcs.bucket_requests import BucketRequests
from backends.objects.gcs.composed_upload import ComposedUpload
from backends.objects.gcs.limits import Limits
from backends.objects.gcs.media_upload import FileRange
from backends.objects.interface import ObjectInfo, ObjectNotFound, never
from nodeexec.capture import CaptureFailed, Capturer
from nodeexec.capture_status import CaptureStatus
from nodeexec.image import digest_file
from nodeexec.store_delays import StoreDelayedError
from nodeexec.upload import CLUSTER_KEY
from reconciler.bucket_sweep import BucketSweep
from reconciler.byte_deletion import ByteDeletion
from schemas.conditions import render_conditions
from schemas.instants import to_micro_time, to_time
from schemas.manifest import MANIFEST_NAME, Manifest
from schemas.names import API_VERSION, CONTROLLER_MANAGER, FINALIZER
from schemas.snapshot import RECORD_VERSION, CaptureRecord, Failure, Snapshot, SpecIdentity
from schemas.storage_config import Location
from statemachine.snapshot import State, capture_conditions

if TYPE_CHECKING:
    from backends.kube.events import EventRecorder
    from nodeexec.node_cache import NodeCache
    from nodeexec.pause_estimate import PauseEstimate
    from nodeexec.runsc import Runsc
    from nodeexec.stopping import Stopper
    from reconciler.cluster_cache import ClusterCache

CLUSTERS: Final = ("c1", "c2")
NAMES: Final = ("a", "b")
FOLDER: Final = Location("bucket", "snapshots")
GRACE_S: Final = 86400.0
# One object of many parts, composed in a tree, and one that needs none.
PARTS: Final = {"checkpoint.img": b"state", "pages.img": b"five pages of memory"}
_LIMITS: Final = Limits(part_bytes=5)
_STEPS_S: Final = (60.0, 3600.0, GRACE_S / 2, GRACE_S + 60)


@dataclass(slots=True)
class _Requests:
    """What the composed upload asks of a bucket."""

    line: BucketLine
    limits: Limits = _LIMITS

    def stat(self, name: str, *, stopped: Callable[[], bool] = never) -> ObjectInfo | None:  # noqa: ARG002 - an answer is at once
        return self.line.stat(name)

    def delete(self, name: str, generation: int) -> None:
        self.line.delete(name, if_generation_match=generation)

    def put_range(
        self,
        name: str,
        source: FileRange,
        crc32c: str,
        if_generation_match: int,
        metadata: Mapping[str, str],
        stopped: Callable[[], bool] = never,  # noqa: ARG002 - a part is one request
    ) -> ObjectInfo:
        info = self.line.put_bytes(
            name,
            b"".join(source.blocks()),
            if_generation_match=if_generation_match,
            metadata=metadata,
        )
        assert info.crc32c == crc32c
        return info

    def compose(
        self,
        name: str,
        sources: Sequence[ObjectInfo],
        if_generation_match: int,
        metadata: Mapping[str, str],
        stopped: Callable[[], bool] = never,  # noqa: ARG002 - it is one request
    ) -> ObjectInfo:
        self.line.begin()
        found = [self.line.bucket.objects.get(source.name) for source in sources]
        if [f and f[0].generation for f in found] != [s.generation for s in sources]:
            raise ObjectNotFound(name)
        data = b"".join(f[1] for f in found if f)
        return self.line.put_bytes(
            name, data, if_generation_match=if_generation_match, metadata=metadata
        )


@dataclass(slots=True)
class _ComposingLine(BucketLine):
    """An ``ObjectStore`` that composes large objects of parts, as that of Cloud Storage does."""

    def put_file(
        self,
        name: str,
        path: Path,
        *,
        if_generation_match: int,
        metadata: Mapping[str, str],
        cancelled: Callable[[], bool] = never,
    ) -> ObjectInfo:
        return self._upload(name, metadata).put(path, if_generation_match, cancelled)

    def discard_put(self, name: str, *, metadata: Mapping[str, str], size_bytes: int) -> None:
        self._upload(name, metadata).discard(size_bytes)

    def _upload(self, name: str, metadata: Mapping[str, str]) -> ComposedUpload:
        requests = cast("BucketRequests", _Requests(self))
        return ComposedUpload(requests, name, metadata, connections=1)


class Agent(Program):
    """A process that stores what was sealed on its node."""

    def __init__(self, cluster: "Cluster") -> None:
        """Wire what stores."""
        super().__init__(cluster)
        self.cluster = cluster
        self.bucket = _ComposingLine(cluster.bucket, self.breathe)
        status = CaptureStatus(self.client, self.clock)
        self.capturer = Capturer(
            node="node-1",
            cluster_id=cluster.name,
            staging=cluster.staging,
            compatibility=NODE,
            runsc=cast("Runsc", None),
            cache=cast("NodeCache", _Cache()),
            status=status,
            stopper=cast("Stopper", None),
            estimate=cast("PauseEstimate", None),
            clock=self.clock,
            is_gone=status.is_over,
        )

    def store(self, name: str) -> None:
        """Store a sealed snapshot, from the beginning or from where an earlier process was."""
        found = self.cluster.live(name)
        if found is None or found.capture is None or found.metadata.is_deleting:
            return
        if found.capture.failure is None and not found.capture.uploaded_at:
            with suppress(CaptureFailed, StoreDelayedError):
                self.capturer.store(found, found.capture, self.bucket)


class Controller(Program):
    """A controller that believes to lead: it deletes bytes, sweeps, and gives up lost nodes."""

    def __init__(self, cluster: "Cluster") -> None:
        """Wire both; the view is of now."""
        super().__init__(cluster)
        self.cluster = cluster
        self.seen: list[Snapshot] = []
        self.look()
        config = SimpleNamespace(
            metadata=SimpleNamespace(is_deleting=False), location=FOLDER, path_error=None
        )
        cache = SimpleNamespace(
            storage_configs=_view(get=lambda *_: config),
            snapshots=_view(items=lambda: self.seen),
        )
        self.deletion = ByteDeletion(
            lambda _: self.bucket, cast("EventRecorder", _Untold()), self.clock
        )
        self.sweep = BucketSweep(
            self.client,
            cast("ClusterCache", cache),
            self.clock,
            cluster.name,
            lambda _: self.bucket,
            GRACE_S,
        )

    def look(self) -> None:
        """Let the view catch up."""
        self.seen = self.cluster.all_live()

    def make_pass(self) -> None:
        """Sweep."""
        self.sweep.reconcile(("", "store"))

    def delete_bytes(self, name: str) -> None:
        """Work off a deletion: bytes first, then the object."""
        found = self.cluster.live(name)
        if found is None or not found.metadata.is_deleting or self.deletion.delete(found):
            return
        metadata = {"uid": found.metadata.uid, "finalizers": []}
        with suppress(NotFound, Conflict):
            self.client.merge_patch(
                POD_SNAPSHOTS,
                name,
                {"metadata": metadata},
                namespace=NAMESPACE,
                field_manager=CONTROLLER_MANAGER,
            )

    def give_up(self, name: str) -> None:
        """Take a save away from its node, unless it has ended."""
        found = self.cluster.live(name)
        if found is None or found.capture is None or found.capture.uploaded_at:
            return
        lost = replace(found.capture, failure=Failure("NodeLost", "made by a test"))
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshot",
            "metadata": {
                **found.metadata.identity(),
                "resourceVersion": found.metadata.resource_version,
            },
            "status": _status(found, lost, State.FAILED, self.clock.now()),
        }
        with suppress(NotFound, Conflict):
            self.client.apply(
                POD_SNAPSHOTS,
                body,
                field_manager=CONTROLLER_MANAGER,
                subresource="status",
                force=True,
            )


class Cluster:
    """One cluster: its API server, its node's disk, its programs."""

    def __init__(self, world: "BucketWorld", name: str, staging: Path) -> None:
        """Begin with nothing saved."""
        self.world, self.name, self.staging = world, name, staging
        self.bucket, self.acting = world.bucket, world.acting
        self.api = ModelledApi(world.changed)
        self.agents = [Agent(self) for _ in range(2)]
        self.controllers = [Controller(self) for _ in range(2)]

    @property
    def now_s(self) -> float:
        """The seconds that passed."""
        return self.world.now_s

    def instant(self) -> datetime:
        """Return the right time."""
        return self.world.instant()

    def breathe(self) -> None:
        """Let others act."""
        self.world.breathe()

    def live(self, name: str) -> Snapshot | None:
        """Return a snapshot as the API server has it."""
        raw = self.api.get("podsnapshots", name, NAMESPACE)
        return Snapshot.parse(raw) if raw else None

    def all_live(self) -> list[Snapshot]:
        """Return all of them."""
        return [found for name in NAMES if (found := self.live(name))]

    def seal(self, name: str) -> None:
        """Save a Pod, up to the point where its image is on the node's disk."""
        if self.live(name) is not None:
            return
        uid = f"{self.name}-{next(self.world.uids)}"
        now = to_micro_time(self.instant())
        record = CaptureRecord(
            node="node-1",
            attempt=1,
            claimed_at=now,
            sealed_at=now,
            location=FOLDER.below(name),
        )
        directory = self.staging / f"{uid}-1"
        directory.mkdir(parents=True)
        for file, data in PARTS.items():
            (directory / file).write_bytes(data + uid.encode())
        manifest = Manifest(
            snapshot_uid=uid,
            snapshot_name=name,
            namespace=NAMESPACE,
            cluster_id=self.name,
            attempt=1,
            parts=tuple(digest_file(directory / file, sync=False) for file in PARTS),
            identity=SpecIdentity("hash", {}),
            compatibility=NODE,
        )
        (directory / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "uid": uid,
            "finalizers": [FINALIZER],
            "annotations": {},
        }
        body: Object = {"metadata": metadata, "spec": {"policyName": "web"}}
        body["status"] = _status(Snapshot.parse(body), record, State.UPLOADING, self.instant())
        self.api.put("podsnapshots", body)

    def delete(self, name: str) -> None:
        """Delete a snapshot as its user does."""
        with suppress(NotFound):
            self.api.delete("podsnapshots", name, NAMESPACE)


class BucketWorld(Interleaving):
    """Both clusters, the bucket, and what happens to them."""

    def __init__(self, directory: Path, moves: Sequence[Move]) -> None:
        """Begin with an empty bucket."""
        super().__init__(moves, MOVES)
        self.now_s = 0.0
        self.acting: list[Program] = []
        self.uids = itertools.count(1)
        self._ticks = itertools.count(1)
        self.bucket = ModelledBucket(lambda: self.instant().timestamp())
        self.on_version: Callable[[str, Object | None, Object | None], None] = lambda *_: None
        # What the stranger wrote, and of which snapshots he overwrote something.
        self.foreign: dict[str, int] = {}
        self.hurt: set[str] = set()
        self.clusters = [Cluster(self, name, directory / name) for name in CLUSTERS]

    def instant(self) -> datetime:
        """Return the right time, never the same twice."""
        passed = timedelta(seconds=self.now_s, microseconds=next(self._ticks))
        return datetime(2026, 1, 1, 12, tzinfo=UTC) + passed

    def changed(self, plural: str, before: Object | None, after: Object | None) -> None:
        """Show a version of an object to whoever looks."""
        self.on_version(plural, before, after)

    def write_as_stranger(self, name: str) -> None:
        """Overwrite whatever has this name, without any mark."""
        before, _ = self.bucket.objects.get(name, (None, b""))
        if before is not None:
            self.hurt.add(before.metadata.get("podsnap-snapshot-uid", ""))
        self.foreign[name] = self.bucket.newest + 1
        self.bucket.keep(name, b"a stranger's", {})

    def settle(self) -> None:
        """Mend what can be mended, and let everything be done that is still to be done."""
        self.forget()
        self.bucket.is_broken = False
        for cluster in self.clusters:
            restart(cluster)
        for _ in range(3):
            for cluster in self.clusters:
                if not any(not s.metadata.is_deleting for s in cluster.all_live()) and any(
                    info.metadata.get(CLUSTER_KEY) == cluster.name
                    for info, _ in self.bucket.objects.values()
                ):
                    for name in NAMES:  # a cluster that knows nothing sweeps nothing that is whole
                        cluster.seal(name)
                for name in NAMES:
                    cluster.agents[0].act(lambda c=cluster, n=name: c.agents[0].store(n))
                controller = cluster.controllers[0]
                for name in NAMES:
                    controller.act(lambda c=controller, n=name: c.delete_bytes(n))
                controller.look()
                controller.act(controller.make_pass)
            self.now_s += GRACE_S + 60


class _Cache:
    """A node's cache, which takes a sealed image over."""

    def adopt(self, digest: str, sealed: Path) -> None:  # noqa: ARG002 - as NodeCache has it
        shutil.rmtree(sealed)


class _Untold:
    """Events that nobody reads."""

    def emit(self, *_: object) -> None:
        return


def _view(**methods: Callable[..., object]) -> SimpleNamespace:
    return SimpleNamespace(store=SimpleNamespace(**methods))


def _status(snapshot: Snapshot, record: CaptureRecord, state: State, now: datetime) -> Object:
    conditions = capture_conditions(state, "made by a test")
    return {
        "conditions": render_conditions(conditions, previous=snapshot.conditions, now=to_time(now)),
        "podsnap": {"version": RECORD_VERSION, "capture": record.to_object()},
    }


def restart(cluster: Cluster) -> None:
    """Start what is dead anew."""
    cluster.agents = [a if a.is_alive else Agent(cluster) for a in cluster.agents]
    cluster.controllers = [c if c.is_alive else Controller(cluster) for c in cluster.controllers]


def _cluster(world: BucketWorld, number: int) -> Cluster:
    return world.clusters[number % 2]


def _name(number: int) -> str:
    return NAMES[number // 2 % 2]


def _store(world: BucketWorld, number: int) -> None:
    agent = _cluster(world, number).agents[number // 4 % 2]
    agent.act(lambda: agent.store(_name(number)))


def _controller(world: BucketWorld, number: int) -> Controller:
    return _cluster(world, number).controllers[number // 4 % 2]


def _work_off(world: BucketWorld, number: int) -> None:
    controller = _controller(world, number)
    controller.act(lambda: controller.delete_bytes(_name(number)))


def _give_up(world: BucketWorld, number: int) -> None:
    controller = _controller(world, number)
    controller.act(lambda: controller.give_up(_name(number)))


def _sweep(world: BucketWorld, number: int) -> None:
    controller = _controller(world, number)
    controller.act(controller.make_pass)


def _sweep_for_long(world: BucketWorld, number: int) -> None:
    """Sweep before and after the grace period, with a view that may be old."""
    _sweep(world, number)
    world.now_s += GRACE_S + 60
    _sweep(world, number)


def _pass_time(world: BucketWorld, number: int) -> None:
    world.now_s += _STEPS_S[number % 4]


def _kill_in_the_act(world: BucketWorld, _: int) -> None:
    if world.acting:
        world.acting[-1].is_alive = False


def _break(world: BucketWorld, number: int) -> None:
    world.bucket.is_broken = number % 4 == 0


def _overwrite(world: BucketWorld, number: int) -> None:
    names = sorted(world.bucket.objects)
    if names:
        world.write_as_stranger(names[number % len(names)])


# What may happen, by name; the number says in which cluster, to which snapshot, by which process.
MOVES: Final[dict[str, Callable[[BucketWorld, int], object]]] = {
    "a Pod is saved": lambda w, n: _cluster(w, n).seal(_name(n)),
    "is stored": _store,
    "whoever acts is killed": _kill_in_the_act,
    "the dead start": lambda w, _: [restart(c) for c in w.clusters],
    "is deleted": lambda w, n: _cluster(w, n).delete(_name(n)),
    "a deletion is worked off": _work_off,
    "the node is given up": _give_up,
    "a view catches up": lambda w, n: _controller(w, n).look(),
    "is swept": _sweep,
    "is swept for long": _sweep_for_long,
    "time passes": _pass_time,
    "the bucket": _break,
    "a stranger overwrites": _overwrite,
    "a stranger was first": lambda w, n: w.write_as_stranger(f"{FOLDER.path}/{_name(n)}/pages.img"),
    "a stranger writes beside": lambda w, n: w.write_as_stranger(f"{FOLDER.path}/readme-{n}"),
}
