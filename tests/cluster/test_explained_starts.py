# SPDX-License-Identifier: Apache-2.0
"""What the node tells of each start, of restores that run, and of what a snapshot's bytes are."""

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from localcluster.cluster import LocalCluster
from localcluster.node import METRICS_PORT
from schemas.snapshot import RestoreProgress, SizeParts, Snapshot
from tests.cluster.told_pods import told
from tests.cluster_scene import INTERPRETER, Scene, eventually, new_scene

pytestmark = pytest.mark.cluster

MIB = 1 << 20
# So much that no disk brings it in a second, before which no restore is shown.
MEMORY_BYTES, FILES_BYTES, VOLUME_BYTES, SHARED_BYTES = (n * MIB for n in (1024, 12, 8, 4))
# A few pages belong to directories, logs and the like.
SLACK_BYTES = MIB
MISSED = "involvedObject.name=missed,reason=GKEPodSnapshotting"
COUNTS = "-o=jsonpath={.items[*].count}"
FILL = f"""
import os, pathlib
os.makedirs("/srv/data", exist_ok=True)
pathlib.Path("/srv/data/kept").write_bytes(os.urandom({FILES_BYTES}))
pathlib.Path("/srv/data/deleted").write_bytes(os.urandom({FILES_BYTES}))
os.remove("/srv/data/deleted")
pathlib.Path("/volume/file").write_bytes(os.urandom({VOLUME_BYTES}))
pathlib.Path("/dev/shm/file").write_bytes(os.urandom({SHARED_BYTES}))
"""


def rest(scene: Scene, pod: str) -> str:
    """Return the end of an event, which says where to read on."""
    return f"; see `podsnap explain pod {pod} -n {scene.namespace}`"


def test_every_cold_start_has_one_event_that_says_why(scene: Scene) -> None:
    """Also where it is what anybody expects; the agent counts the same reasons."""
    scene.policy()
    scene.ready_pod("first")
    scene.ready_pod("never", annotations={"podsnapshot.gke.io/ps-name": ""})
    scene.ready_pod("astray", annotations={"podsnapshot.gke.io/ps-name": "nowhere"})
    for pod, begin in (
        ("first", "Normal Started cold: no snapshot of policy policy is ready yet"),
        ("never", "Normal Started cold: the Pod's ps-name annotation is empty"),
        ("astray", "Warning falling back to a cold start of pod: PodSnapshot"),
    ):
        scene.event(pod, begin)
        (event,) = scene.events(pod)
        assert event.startswith(begin)
        assert event.endswith(rest(scene, pod))
    url = f"http://{scene.cluster.nodes[0].address}:{METRICS_PORT}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        metrics = answer.read().decode()
    for outcome, reason in (
        ("Cold", "NoSnapshotYet"),
        ("Cold", "PinnedToNone"),
        ("ColdDespiteSnapshot", "PinMissing"),
    ):
        series = f'podsnap_pod_starts_total{{outcome="{outcome}",reason="{reason}"}} '
        assert float(metrics.partition(series)[2].split()[0]) >= 1


def test_a_pod_that_started_while_the_agent_was_away_is_told_once(scene: Scene) -> None:
    """By the agent that comes back, and not again by the next one; an older Pod is not told."""
    with scene.without_agent():
        scene.ready_pod("older")
        scene.policy()
        scene.ready_pod("missed")
    event = scene.event("missed", "Normal Started cold: the Pod's sandbox was made without podsnap")
    assert event.endswith(rest(scene, "missed"))
    with scene.without_agent():
        pass
    scene.ready_pod("later")
    scene.event("later", "Started cold: no snapshot")
    assert scene.events("missed") == [event]
    assert scene.kubectl("get", "events", f"--field-selector={MISSED}", COUNTS) == "1"
    assert scene.events("older") == []


@dataclass(frozen=True, slots=True)
class Saved:
    """A large Pod that was saved."""

    scene: Scene
    snapshot: Snapshot

    def pod(self, name: str, **env: str) -> None:
        """Make another such Pod."""
        large_pod(self.scene, name, **env)


def large_pod(scene: Scene, name: str, **env: str) -> None:
    """Make a Pod with much memory and an emptyDir."""
    memory = f"import os; ballast = os.urandom({MEMORY_BYTES})\n{INTERPRETER}"
    scene.pod(
        name,
        container=told(
            command=["/usr/bin/python3", "-c", memory, "8080"],
            env=[{"name": k, "value": v} for k, v in env.items()],
            volumeMounts=[{"name": "volume", "mountPath": "/volume"}],
        ),
        spec={"volumes": [{"name": "volume", "emptyDir": {}}]},
    )


@pytest.fixture(scope="module")
def saved(cluster: LocalCluster) -> Iterator[Saved]:
    """Save a Pod that wrote into its root file system, an emptyDir and shared memory."""
    with new_scene(cluster, "explained-starts") as scene:
        scene.policy()
        large_pod(scene, "first", LOG_LEVEL="debug")
        scene.wait_ready("first")
        scene.tell("first", FILL)
        yield Saved(scene, scene.save("first"))


def test_a_snapshot_says_what_its_bytes_are(saved: Saved) -> None:
    """To the page; files that were deleted cost nothing, and the parts add up."""
    capture = saved.snapshot.capture
    assert capture is not None
    assert isinstance(capture.sizes, SizeParts)
    assert 0 <= capture.sizes.rootfs_bytes - FILES_BYTES < SLACK_BYTES
    assert 0 <= capture.sizes.volumes_bytes - VOLUME_BYTES - SHARED_BYTES < SLACK_BYTES
    assert capture.sizes.memory_bytes > MEMORY_BYTES
    assert sum(capture.sizes.to_object().values()) == capture.size_bytes


def test_a_restore_that_takes_a_while_shows_how_far_it_is(saved: Saved) -> None:
    """Then it is counted, and its Event names what the Pod's environment has and memory has not."""
    scene, name = saved.scene, saved.snapshot.metadata.name
    scene.forget_cached_images()
    saved.pod("second", LOG_LEVEL="info")

    def running() -> RestoreProgress | None:
        return next(iter(scene.snapshot(name).restores.values()), None)

    shown = eventually("a restore that is shown", running)
    assert (shown.pod_name, shown.node) == ("second", "node1")
    assert shown.phase in {"Fetching", "Restoring"}
    assert saved.snapshot.capture is not None
    assert 0 <= shown.done_bytes <= shown.total_bytes == saved.snapshot.capture.size_bytes
    scene.wait_ready("second")
    eventually("no restore to be shown", lambda: running() is None)
    eventually("the count", lambda: scene.snapshot(name).restored_by == {"node1": 1})
    assert scene.snapshot(name).last_access_time
    event = scene.event("second", "Successfully restored the pod from PodSnapshot")
    assert event == (
        f"Normal Successfully restored the pod from PodSnapshot {scene.namespace}/{name}; "
        "env differs: container counter: LOG_LEVEL differs (see /proc/gvisor/spec_environ)"
    )
    assert scene.restored_from("second").endswith(name)
