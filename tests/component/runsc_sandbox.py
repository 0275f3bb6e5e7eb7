# SPDX-License-Identifier: Apache-2.0
"""A Pod in the real runsc without containerd, and an agent's parts around it.

runsc is called in the order of a kubelet, with the annotations of the CRI, on the unpacked images
of the examples: a pause container and the counter. The trap: a guest keeps the files that its
runsc was given, so their output goes to a file; through a pipe the caller would wait for the guest.
"""

import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_world import World, eventually
from stepped_clock import SteppedClock

from backends.clock import SystemClock
from backends.kube.client import (
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    KubeClient,
)
from backends.kube.events import EventRecorder
from backends.objects.localdir import LocalDirStore
from localcluster.images import build_image, default_cache
from nodeexec.capture import CaptureJob, Capturer
from nodeexec.capture_status import CaptureStatus
from nodeexec.node_cache import NodeCache
from nodeexec.node_description import describe
from nodeexec.pause_estimate import PauseEstimate
from nodeexec.pod_reports import PodReports
from nodeexec.runsc import Runsc
from nodeexec.sandboxes import PreparedSandbox
from nodeexec.settings import AgentSettings
from nodeexec.stopping import Stopper
from policies.distill import distill
from policies.identity import manual_snapshot_name
from policies.new_snapshots import manual_snapshot
from reconciler.cluster_cache import ClusterCache
from reconciler.demand_book import DemandBook
from reconciler.snapshot_controller import SnapshotController
from schemas.instants import to_micro_time
from schemas.names import CONTROLLER_MANAGER
from schemas.node_facts import AGENT_LOST_S
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.snapshot import Compatibility, Snapshot
from schemas.storage_config import StorageConfig
from schemas.trigger import ManualTrigger

NODE = "node-1"
CLUSTER = "c1"
CONTAINER = "main"
EXAMPLES = Path(__file__).parents[2] / "examples"
_CRI = "io.kubernetes.cri"
_FLAGS = ("--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=root:memory")
_CONFIG = '[runsc_config]\nplatform = "systrap"\nnetwork = "none"\noverlay2 = "root:memory"\n'
_LIMIT_S = 20
# Runs inside the sandbox, because without a network nobody outside can ask.
_ASK = """
import time, urllib.request
for _ in range(200):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:8080/").read().decode())
        break
    except OSError:
        time.sleep(0.02)
"""


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    """An example's image as a root file system, and the process that it starts."""

    root: Path
    image_id: str
    command: list[str]
    env: list[str]


def unpack(example: str, root: Path) -> UnpackedImage:
    """Build an example's image, or take it from the cache, and unpack its layers."""
    image = build_image(EXAMPLES / example, cache=default_cache(), progress=lambda _: None)
    with tarfile.open(image.archive) as archive:

        def read(name: str) -> dict[str, Any]:
            content = archive.extractfile(name)
            assert content is not None
            found: dict[str, Any] = json.load(content)
            return found

        def blob(descriptor: dict[str, str]) -> str:
            return f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"

        manifest = read(blob(read("index.json")["manifests"][0]))
        process = read(blob(manifest["config"]))["config"]
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=archive.extractfile(blob(layer))) as files:
                files.extractall(root, filter="tar")
    return UnpackedImage(root, image.image_id, process["Entrypoint"], process["Env"])


@dataclass(frozen=True, slots=True)
class GvisorNode:
    """What a node has before any Pod: runsc, its configuration, and the images."""

    runsc: Runsc
    pause: UnpackedImage
    counter: UnpackedImage
    compatibility: Compatibility

    @classmethod
    def prepare(cls, directory: Path, binary: Path) -> "GvisorNode":
        """Unpack the images below a directory and describe the node as an agent does."""
        config = directory / "runsc.toml"
        config.write_text(_CONFIG, encoding="utf-8")
        settings = AgentSettings(
            node_name=NODE,
            kubeconfig=directory / "kubeconfig",
            state_dir=directory / "state",
            socket=directory / "agent.sock",
            runsc=binary,
            runsc_root=directory / "runsc",
            runsc_config=config,
            kubelet_root=directory / "kubelet",
            ctr=directory / "ctr",
            containerd_address=directory / "containerd.sock",
            containerd_state=directory / "containerd",
            bucket_root=directory / "buckets",
            cluster_id=CLUSTER,
        )
        return cls(
            runsc=Runsc(binary=binary, root=settings.runsc_root),
            pause=unpack("images/pause", directory / "pause"),
            counter=unpack("counter", directory / "counter"),
            compatibility=describe(settings),
        )

    def release(self) -> None:
        """Undo what runsc leaves mounted below its root."""
        subprocess.run(
            ["umount", str(self.runsc.root / "null-netns")], capture_output=True, check=False
        )


@dataclass(slots=True)
class RunningPod:
    """A sandbox of two containers."""

    node: GvisorNode
    sandbox: str
    directory: Path
    _created: list[str] = field(default_factory=list)

    @property
    def app(self) -> str:
        """The id of the application's container; runsc takes the beginning of an id for it."""
        return f"app-{self.sandbox}"

    @property
    def pid(self) -> int:
        """The process that holds the sandbox's memory."""
        state = self.node.runsc.root / f"{self.sandbox}_sandbox:{self.sandbox}.state"
        return int(json.loads(state.read_text(encoding="utf-8"))["sandbox"]["pid"])

    def start(self, *, image: Path | None = None) -> None:
        """Create and start both containers; with an image they go on where it was saved."""
        for name, kind, unpacked in (
            (self.sandbox, "sandbox", self.node.pause),
            (self.app, "container", self.node.counter),
        ):
            bundle = self._bundle(name, kind, unpacked)
            self._run("create", f"--bundle={bundle}", name)
            self._created.append(name)
            if image is None:
                self._run("start", name)
            else:
                self._run(
                    "restore", "--detach", f"--bundle={bundle}", f"--image-path={image}", name
                )
        if image is not None:
            self.node.runsc.wait_for_restore(self.sandbox, limit_s=_LIMIT_S)

    def counter(self) -> dict[str, Any]:
        """Return what the counter inside answers now."""
        done = subprocess.run(
            [*self._runsc(), "exec", self.app, "/usr/bin/python3", "-c", _ASK],
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def kill(self) -> None:
        """Kill the sandbox as the kernel would when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Remove both containers, whatever state they are in."""
        with suppress(OSError, ValueError):
            os.kill(self.pid, signal.SIGCONT)
        for name in reversed(self._created):
            subprocess.run(
                [*self._runsc(), "delete", "--force", name],
                capture_output=True,
                timeout=_LIMIT_S,
                check=False,
            )

    def _bundle(self, name: str, kind: str, image: UnpackedImage) -> Path:
        bundle = self.directory / name
        bundle.mkdir(parents=True)
        annotations = {f"{_CRI}.container-type": kind, f"{_CRI}.sandbox-id": self.sandbox}
        if kind == "container":
            annotations[f"{_CRI}.container-name"] = CONTAINER
        spec = {
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": image.command,
                "env": image.env,
                "cwd": "/",
            },
            "root": {"path": str(image.root)},
            "hostname": self.sandbox,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108 - the guest's
            ],
            "linux": {
                "namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")]
            },
            "annotations": annotations,
        }
        (bundle / "config.json").write_text(json.dumps(spec), encoding="utf-8")
        return bundle

    def _run(self, *arguments: str) -> None:
        log = self.directory / f"{arguments[0]}-{arguments[-1]}.log"
        with log.open("wb") as output:
            code = subprocess.run(
                [*self._runsc(), *_FLAGS, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=_LIMIT_S,
                check=False,
            ).returncode
        assert code == 0, f"runsc {arguments}: {log.read_text(encoding='utf-8')}"

    def _runsc(self) -> list[str]:
        return [str(self.node.runsc.binary), f"--root={self.node.runsc.root}"]


@contextmanager
def running_pod(
    node: GvisorNode, directory: Path, *, image: Path | None = None
) -> Iterator[RunningPod]:
    """Run the two containers, cold or from an image, and remove them at the end."""
    pod = RunningPod(node=node, sandbox=f"sandbox-{directory.name}", directory=directory)
    with ExitStack() as stack:
        stack.callback(pod.end)
        pod.start(image=image)
        yield pod


@dataclass(frozen=True, slots=True)
class SavingNode:
    """A namespace whose one Pod runs in a real sandbox, and the agent's part that saves it."""

    world: World
    running: RunningPod
    capturer: Capturer
    controller: SnapshotController
    pod: Pod

    @classmethod
    def build(
        cls,
        world: World,
        running: RunningPod,
        *,
        state: Path,
        agent: KubeClient,
        controller: SnapshotController,
    ) -> "SavingNode":
        """Create the bucket, the storage config, the policy and the Pod; save nothing yet."""
        clock = SystemClock()

        def is_gone(snapshot: Snapshot) -> bool:
            raw = agent.get(
                POD_SNAPSHOTS, snapshot.metadata.name, namespace=snapshot.metadata.namespace
            )
            return Snapshot.parse(raw).metadata.is_deleting

        capturer = Capturer(
            node=NODE,
            cluster_id=CLUSTER,
            staging=state / "staging",
            compatibility=running.node.compatibility,
            runsc=running.node.runsc,
            cache=NodeCache(state / "cache"),
            status=CaptureStatus(agent, clock),
            stopper=Stopper(
                running.node.runsc,
                agent,
                PodReports(agent, EventRecorder(agent, component="test", instance=NODE), clock),
                state / "bundles",
            ),
            estimate=PauseEstimate(),
            clock=clock,
            is_gone=is_gone,
        )
        world.make_bucket()
        world.storage()
        world.policy()
        pod = counter_pod(world, "web-0")
        return cls(world, running, capturer, controller, pod)

    @property
    def store(self) -> LocalDirStore:
        """The bucket."""
        return LocalDirStore(self.world.bucket)

    @property
    def sandbox(self) -> PreparedSandbox:
        """The sandbox as the runtime would have recorded it."""
        return PreparedSandbox(
            id=self.running.sandbox,
            bundle=self.running.directory / self.running.sandbox,
            pod_uid=self.pod.metadata.uid,
            pod_name=self.pod.metadata.name,
            namespace=self.world.namespace,
            policy="web",
            workload_dir=None,
            restored_from="",
            expected_containers=1,
        )

    def job(self, trigger: str = "now") -> CaptureJob:
        """Ask for a save as the trigger's controller does, and gather what it needs."""
        by = ManualTrigger.parse(self.world.trigger(trigger))
        name = manual_snapshot_name(by.metadata.uid)
        policy = self.world.get(POD_SNAPSHOT_POLICIES, "web")
        storage = self.world.get(POD_SNAPSHOT_STORAGE_CONFIGS, self.world.store)
        assert policy is not None
        assert storage is not None
        now = to_micro_time(self.capturer.clock.now())
        body = manual_snapshot(name, self.pod, Policy.parse(policy), by=by, now=now)
        self.controller.client.create_once(POD_SNAPSHOTS, body, field_manager=CONTROLLER_MANAGER)
        location = StorageConfig.parse(storage).location
        assert location is not None
        return CaptureJob(
            snapshot=self.snapshot(name),
            pod=self.pod,
            sandbox=self.sandbox,
            identity=distill(self.pod),
            image_ids={CONTAINER: self.running.node.counter.image_id},
            location=location.below(name),
        )

    def snapshot(self, name: str) -> Snapshot:
        """Return a PodSnapshot as the API has it now."""
        raw = self.world.get(POD_SNAPSHOTS, name)
        assert raw is not None
        return Snapshot.parse(raw)

    def objects(self) -> list[str]:
        """Return the file names of what is in the bucket."""
        return sorted(i.name.rpartition("/")[2] for i in self.store.list("snapshots/"))

    def reconcile(self, name: str, *, once: Callable[[Snapshot], bool]) -> None:
        """Let the controller look at a snapshot once its cache shows what it should."""
        key = (self.world.namespace, name)
        cache = self.controller.cache

        def is_shown() -> bool:
            cached = cache.snapshots.store.get(*key)
            has_policy = cache.policies.store.get(self.world.namespace, "web") is not None
            return has_policy and cached is not None and once(cached)

        eventually(is_shown, "the controller's cache shows the snapshot")
        self.controller.reconcile(key)

    def give_up(self, name: str, *, once: Callable[[Snapshot], bool]) -> None:
        """Let the controller find that the node's agent gave no sign of life for too long."""
        self.reconcile(name, once=once)
        clock = self.controller.clock
        assert isinstance(clock, SteppedClock)
        clock.step(AGENT_LOST_S + 1)

        def is_given_up() -> bool:
            self.controller.reconcile((self.world.namespace, name))
            capture = self.snapshot(name).capture
            return capture is not None and capture.failure is not None

        eventually(is_given_up, "the controller gives the save up")

    def saved(self) -> Snapshot:
        """Save and store the Pod, and let the controller say that restores are possible."""
        sealed, record = self.capturer.save(self.job(), attempt=1)
        stored = self.capturer.store(sealed, record, self.store)
        self.reconcile(
            stored.metadata.name,
            once=lambda s: s.capture is not None and bool(s.capture.uploaded_at),
        )
        return self.snapshot(stored.metadata.name)


def counter_pod(world: World, name: str, *, labels: dict[str, str] | None = None) -> Pod:
    """Create a Pod of the counter's Deployment, bound to the node."""
    containers = [{"name": CONTAINER, "image": "podsnap.local/counter:1"}]
    return Pod.parse(world.pod(name, labels=labels, containers=containers))


@contextmanager
def snapshot_controller(client: KubeClient, bucket_root: Path) -> Iterator[SnapshotController]:
    """The controller's part that judges snapshots; it acts, and time passes, as a test says."""
    cache = ClusterCache(client)
    cache.start()
    try:
        eventually(cache.is_synced, "the controller's caches are filled")
        made = SnapshotController(
            client=client,
            cache=cache,
            clock=SteppedClock(),
            open_store=lambda location: LocalDirStore(bucket_root / location.bucket),
            demands=DemandBook(cache, SteppedClock()),
            events=EventRecorder(client, component="tests", instance="tests"),
        )
        made.delete_soon = made.delete_bytes
        yield made
    finally:
        cache.stop()
