# SPDX-License-Identifier: Apache-2.0
"""Behaviours 31 to 33: what those see who were written for GKE, call by call."""

from typing import Any

import pytest

from tests.cluster.told_pods import NEVER, ballast, memory, staging_disk, told
from tests.cluster_scene import Scene, eventually
from tests.contract.policies import policy
from tests.contract.sandbox_client import (
    SANDBOX_LABEL,
    ClientError,
    SnapshotClient,
    migration_verdict,
    snapshot_client,
)

pytestmark = pytest.mark.cluster

HASH = "1f2e3d"
SANDBOX = {SANDBOX_LABEL: HASH}
BY_SANDBOX = {
    "snapshotGroupingRules": {
        "groupByLabelValue": {
            "labels": [SANDBOX_LABEL],
            "groupRetentionPolicy": {"maxSnapshotCountPerGroup": 3},
        }
    }
}
PS_NAME = "podsnapshot.gke.io/ps-name"


def resume(scene: Scene, client: SnapshotClient, snapshot: str, **pod: Any) -> None:  # noqa: ANN401 - as ``Scene.pod``
    """Make the sandbox's Pod again; the client looks at it once, when it is Ready."""
    seen = scene.ready_pod("box", labels=SANDBOX, **pod)
    assert seen.restored_when_ready
    assert client.is_restored(scene.get("pod", "box"), snapshot)


@pytest.mark.contract(28, 31)
def test_the_sandbox_client_suspends_resumes_chooses_and_deletes(scene: Scene) -> None:
    """Its calls, with its rights and no other, and what it takes for granted of their answers."""
    policy(scene, **BY_SANDBOX)
    scene.ready_pod("box", labels=SANDBOX)
    nonce = scene.nonce("box")
    with snapshot_client(scene) as client:

        def suspend(prefix: str, count: int) -> str:
            taken = client.create(prefix, "box")
            scene.delete("box")

            def listed() -> list[dict[str, Any]]:
                return found if len(found := client.list(HASH)) == count else []

            found = eventually("a snapshot that is Ready", listed)
            assert found[0]["metadata"]["name"] == taken.snapshot
            assert found[0]["metadata"]["annotations"]["podsnapshot.gke.io/origin-pod"] == "box"
            return taken.snapshot

        older = suspend("Before_Lunch", 1)
        resume(scene, client, older)
        newer = suspend("suspend-box", 2)
        resume(scene, client, newer)
        scene.delete("box")
        resume(scene, client, older, annotations={PS_NAME: older})
        assert scene.nonce("box") == nonce

        since = client.version("podsnapshots")

        client.delete(newer)

        watched = client.watch("podsnapshots", since, name=newer)
        assert "DELETED" in (kind for kind, _ in watched)
        assert [s["metadata"]["name"] for s in client.list(HASH)] == [older]
        assert client.list("another") == []
        assert {name.partition("/")[0] for name in scene.stored()} == {older}
        with pytest.raises(ClientError, match="no-such-pod"):
            client.create("lost", "no-such-pod")
        made = scene.kubectl("get", "psmt", "-o=jsonpath={.items[*].metadata.name}").split()
        client.terminate(*made, "one-that-is-gone")
        assert scene.kubectl("get", "psmt", "-o=name") == ""


@pytest.mark.contract(31)
def test_a_migration_ends_a_pod_and_goes_on_in_its_replacement(scene: Scene) -> None:
    """It polls, and at no poll takes the save for lost; emptying the pin forces a cold start."""
    policy(scene, triggerConfig={"type": "manual", "postCheckpoint": "stop"})
    scene.ready_pod("first", spec=NEVER, container=told())
    nonce = memory(scene, "first")
    trigger = scene.trigger("first")

    def polled() -> tuple[str, str]:
        asked = scene.get("psmt", trigger)
        name = (asked.get("status") or {}).get("snapshotCreated", {}).get("name", "")
        verdict = migration_verdict(asked, scene.get("ps", name) if name else {})
        assert verdict != "fails"
        return (verdict, name) if verdict == "goes on" else ("", "")

    _, name = eventually("a verdict", lambda: found if any(found := polled()) else None)
    eventually("Succeeded", lambda: scene.phase("first") == "Succeeded")
    scene.wait_available(name)

    scene.ready_pod("second", spec=NEVER, container=told(), annotations={PS_NAME: name})
    scene.ready_pod("third", spec=NEVER, container=told(), annotations={PS_NAME: ""})

    assert memory(scene, "second") == nonce
    assert memory(scene, "third") != nonce


@pytest.mark.contract(32)
def test_a_script_waits_with_kubectl(scene: Scene) -> None:
    """Save, wait for both, start, delete: as a warm pool is filled."""
    scene.policy()
    scene.ready_pod("first")
    trigger = scene.trigger("first")

    scene.kubectl("wait", "--for=condition=Triggered", f"psmt/{trigger}", "--timeout=60s")
    name = scene.kubectl("get", f"psmt/{trigger}", "-o=jsonpath={.status.snapshotCreated.name}")
    scene.kubectl("wait", "--for=condition=Ready", f"podsnapshot/{name}", "--timeout=60s")
    scene.pod("second")
    scene.kubectl("wait", "--for=condition=Ready", "pod/second", "--timeout=60s")
    scene.kubectl("wait", "--for=condition=PodRestored", "pod/second", "--timeout=60s")

    assert scene.nonce("second") == scene.nonce("first")
    scene.kubectl("delete", "podsnapshot", name, "--timeout=60s")
    assert scene.stored() == set()


@pytest.mark.contract(33)
def test_a_save_that_is_done_again_never_says_failed(scene: Scene) -> None:
    """The agent is killed while runsc writes; every write of the object is looked at."""
    scene.policy()
    scene.ready_pod("first", container=ballast(400))
    staging = scene.node_state / "staging"
    with snapshot_client(scene) as client:
        since = client.version("podsnapshots")
        trigger = scene.trigger("first")
        eventually("runsc writes", lambda: [*staging.glob("*/checkpoint.img")])
        scene.cluster.component("node1", "agent").kill()
        assert scene.triggered(trigger)["reason"] == "Complete"
        (snapshot,) = scene.snapshots()
        last = scene.wait_available(snapshot.metadata.name)

        verdicts = []
        for _, written in client.watch("podsnapshots", since):
            verdicts.append(migration_verdict({}, written))
            if written["metadata"]["resourceVersion"] == last.metadata.resource_version:
                break

    assert last.capture is not None
    assert last.capture.attempt > 1
    assert set(verdicts) == {"waits", "goes on"}
    assert verdicts == sorted(verdicts, reverse=True)


@pytest.mark.contract(10, 33)
def test_a_save_that_has_failed_stays_failed(scene: Scene) -> None:
    """Trigger and snapshot say so, and nothing that follows changes it."""
    scene.policy()
    scene.ready_pod("first")
    nonce = scene.nonce("first")
    with staging_disk(scene, "", "ro,size=4g"):  # with room, so that it fails while it writes
        trigger = scene.trigger("first")
        assert scene.triggered(trigger)["reason"] == "Failed"
    (failed,) = scene.snapshots()
    name = failed.metadata.name

    def verdict() -> str:
        return migration_verdict({}, scene.get("ps", name))

    eventually("the snapshot says so too", lambda: verdict() == "fails")
    message = scene.condition("psmt", trigger, "Triggered")
    later = scene.save("first")

    assert later.metadata.name != name
    assert verdict() == "fails"
    assert scene.condition("psmt", trigger, "Triggered") == message
    assert scene.nonce("first") == nonce
