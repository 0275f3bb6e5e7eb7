# SPDX-License-Identifier: Apache-2.0
"""How each step of the kill table is reached and held: one branch a step.

Inside the ``with`` the step holds; what is done there is done at that step. On the way out whoever
was held goes on.
"""

import contextlib
import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from backends.kube.client import KubeClient
from backends.kube.transport import Transport
from localcluster.cluster import LocalCluster
from localcluster.pod_times import watching
from schemas.snapshot import Snapshot
from tests.faults import kill_table as table
from tests.faults.kill_scene import BALLAST, KillScene, converge, spin
from tests.faults.kill_table import Step

# Only pages.img is larger, so a part of this size is on its way for a while.
_LARGE_BYTES = 16 << 20


@contextmanager
def kill_scene(cluster: LocalCluster, name: str) -> Iterator[KillScene]:
    """Make a namespace, a bucket and a policy for a group of cells."""
    namespace = f"kill-{name}-{int(time.time())}"
    cluster.kubectl("create", "namespace", namespace)
    transport = Transport.from_kubeconfig(cluster.kubeconfig, user_agent="podsnap-faults")
    with watching(cluster.kubeconfig, namespace) as times:
        scene = KillScene(cluster, namespace, times, client=KubeClient(transport))
        scene.storage()
        scene.policy()
        try:
            yield scene
        finally:
            with contextlib.suppress(Exception):
                scene.kubectl("delete", "pods,ps,psmt,psp", "--all", "--wait=false")
            cluster.kubectl("delete", "namespace", namespace, "--wait=false", "--ignore-not-found")
            cluster.kubectl("delete", "pssc", namespace, "--ignore-not-found")
            transport.close()
            gc.collect()  # what is broken shows here, not in another test


@contextmanager
def reach_save(scene: KillScene, step: Step, pod: str) -> Iterator[str]:  # noqa: C901 - one branch a step
    """Ask for a save of a Pod and hold it at a step."""
    sandbox_pid = scene.sandbox_pid(scene.sandbox_of(pod))
    sent_before = set(scene.sending())

    def sends(at_least_bytes: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(
                p.stat().st_size >= at_least_bytes for p in scene.sending() if p not in sent_before
            )
        return False

    def grows() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(p.stat().st_size for p in scene.staged_parts("pages.img"))
        return False

    with ExitStack() as held:
        if step == table.TRIGGERED:
            held.enter_context(scene.holding("controller"))
        elif step == table.ADDRESSED:
            held.enter_context(scene.holding("agent"))
        trigger = scene.trigger(pod)
        if step == table.ADDRESSED:
            spin("a PodSnapshot", lambda: snapshot_of(scene, trigger))
        elif step == table.WRITING:
            spin("pages.img grows", grows)
            held.enter_context(scene.holding_process(sandbox_pid))
        elif step == table.SEALING:
            spin("runsc has ended", lambda: scene.staged_parts("metadata"))
            held.enter_context(scene.holding("agent"))
            assert not scene.staged_parts("manifest.json"), "the step was missed"
        elif step == table.SEALED:
            spin("runsc has ended", lambda: scene.staged_parts("metadata"))
            held.enter_context(scene.holding("kube-apiserver"))
            spin("sealed", lambda: scene.staged_parts("manifest.json"))
        elif step == table.SENDING:
            spin("a part under way", lambda: sends(_LARGE_BYTES))
            held.enter_context(scene.holding("agent"))
            assert sends(_LARGE_BYTES), "the step was missed"
        elif step == table.STORED:
            stored_before = scene.stored()
            spin("the largest part under way", lambda: sends(_LARGE_BYTES))
            held.enter_context(scene.holding("kube-apiserver"))
            spin(
                "the manifest",
                lambda: [n for n in scene.stored() - stored_before if n.endswith("manifest.json")],
            )
        yield trigger


def snapshot_of(scene: KillScene, trigger: str) -> Snapshot | None:
    """Return the snapshot that a trigger caused."""
    for snapshot in scene.snapshots():
        if snapshot.metadata.labels.get("gke-pod-snapshot-triggered-by") == trigger:
            return snapshot
    return None


def is_settled(snapshot: Snapshot | None) -> bool:
    """Whether a save has come to its end."""
    if snapshot is None:
        return True
    ready = snapshot.conditions.get("Ready")
    return ready is not None and (ready.is_true or ready.reason in {"Failed", "Obsolete"})


@contextmanager
def reach_restore(scene: KillScene, step: Step, pod: str) -> Iterator[None]:
    """Create a Pod that restores and hold it at a step."""
    cache = scene.node_state / "cache"
    if step.phase == "fetch":
        scene.forget_cached_images()

    def decided() -> str:
        sandbox = scene.sandbox_of(pod)
        return sandbox if sandbox and scene.record_of(sandbox)["restore"] else ""

    with ExitStack() as held:
        if step == table.FETCHED:
            held.enter_context(scene.holding("kubelet"))
        scene.pod(pod, container=BALLAST)
        if step == table.FETCHING:
            spin("a part under way", lambda: list(cache.glob("*.partial/*.img")))
            held.enter_context(scene.holding("agent"))
            assert list(cache.glob("*.partial/*.img")), "the step was missed"
        elif step == table.FETCHED:
            spin("verified", lambda: list(cache.glob("*/verified.json")))
        elif step == table.CREATED:
            sandbox = spin("the decision", decided)
            held.enter_context(scene.holding("containerd"))
            state = scene.runsc_root / f"{sandbox}_sandbox:{sandbox}.state"
            spin("the sandbox", state.exists)
        elif step in {table.ASSEMBLED, table.LOADING}:
            sandbox = spin("the decision", decided)
            pid = spin("the sandbox", lambda: scene.sandbox_pid(sandbox))
            container = spin("a container's bundle", lambda: bundle_in(scene, sandbox))
            containerd = held.enter_context(ExitStack())
            with scene.holding_process(pid):
                # Earlier the runtime still asks containerd which image it is.
                spin("runsc create", lambda: scene.clients("create", container))
                containerd.enter_context(scene.holding("containerd"))
            # Its state file is there before the sandbox knows it.
            spin("the container", lambda: not scene.clients("create", container))
            assert scene.containers_in(sandbox) == [container]
            if step == table.LOADING:
                containerd.close()
                runtime = spin("the runtime", lambda: scene.calls("start", container))[0]
                spin("runsc start", lambda: scene.children(runtime))
                held.enter_context(scene.holding_process(pid))
                assert scene.clients("start", container), "the step was missed"
        elif step == table.UNREPORTED:
            sandbox = spin("the decision", decided)
            held.enter_context(scene.holding("agent"))
            started = scene.bundles / sandbox / "podsnap-started"
            spin("all containers started", lambda: started.is_dir() and list(started.iterdir()))
        yield


def bundle_in(scene: KillScene, sandbox: str) -> str:
    """Return the application container whose bundle containerd has made for a sandbox."""
    for config in scene.bundles.glob("*/config.json"):
        if config.parent.name == sandbox:
            continue
        with contextlib.suppress(OSError):
            if f'"io.kubernetes.cri.sandbox-id":"{sandbox}"' in config.read_text(encoding="utf-8"):
                return config.parent.name
    return ""


@contextmanager
def reach_delete(scene: KillScene, step: Step, name: str) -> Iterator[None]:
    """Delete a snapshot and hold its deletion at a step."""

    def is_deleting() -> bool:
        found = scene.condition("ps", name, "Ready")
        return found is not None and found["reason"] == "Deleting"

    with ExitStack() as held:
        bucket = held.enter_context(ExitStack())
        if step == table.DELETED:
            held.enter_context(scene.holding("controller"))
        else:
            bucket.enter_context(scene.holding_bucket())
        scene.remove("ps", name)
        if step != table.DELETED:
            spin("Deleting", is_deleting)
        if step == table.EMPTIED:
            held.enter_context(scene.holding("kube-apiserver"))
            bucket.close()
            spin("no bytes", lambda: not scene.stored_of(name))
        yield


def assert_no_orphans(scene: KillScene) -> None:
    """Wait until nothing is left that nobody owns."""
    left: list[str] = []

    def is_clean() -> bool:
        left[:] = scene.orphans()
        return not left

    with contextlib.suppress(AssertionError):
        converge("no orphan", is_clean, pause_s=0.5)
    assert not left, left
