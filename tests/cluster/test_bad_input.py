# SPDX-License-Identifier: Apache-2.0
"""What a user gets who asks for what cannot be: a reason, what to do, and a Pod that runs."""

import shutil
from pathlib import Path

import pytest

from localcluster.images import build_image
from tests.cluster_scene import Scene, eventually

pytestmark = pytest.mark.cluster

COUNTER = Path(__file__).parents[2] / "examples" / "counter"


def test_a_pod_older_than_its_policy_is_asked_to_restart_once(scene: Scene) -> None:
    """Its sandbox was not prepared, so its image could not be restored."""
    scene.ready_pod("first")
    scene.policy()

    answer = scene.triggered(scene.trigger("first"))

    assert answer["reason"] == "Failed"
    assert "NoPreparedSandbox" in answer["message"]
    assert "restart the Pod once" in answer["message"]
    assert scene.nonce("first")


def test_a_missing_bucket_makes_a_trigger_wait_and_is_told(scene: Scene) -> None:
    """Storage that appears later is used then; nothing has to be done again."""
    scene.policy()
    scene.ready_pod("first")
    shutil.rmtree(scene.bucket)
    scene.kubectl("annotate", "pssc", scene.namespace, "look=again")
    eventually("bucket missing", lambda: not scene.is_true("pssc", scene.namespace, "Ready"))

    trigger = scene.trigger("first")
    pending = eventually("pending", lambda: scene.condition("psmt", trigger, "Triggered"))
    policy = scene.condition("psp", "policy", "Ready")
    scene.bucket.mkdir(mode=0o700)
    answer = scene.triggered(trigger)

    assert pending["reason"] == "Pending"
    assert "does not exist" in pending["message"]
    assert policy is not None
    assert policy["reason"] == "StorageNotReady"
    assert answer["reason"] == "Complete"


@pytest.mark.contract(10)
def test_a_bucket_that_vanishes_during_a_save_fails_the_save_and_not_the_pod(
    scene: Scene,
) -> None:
    """The snapshot says so for good, nothing is left on the node, the Pod goes on."""
    scene.policy()
    scene.ready_pod("first")
    nonce = scene.nonce("first")
    shutil.rmtree(scene.bucket)

    trigger = scene.trigger("first")
    answer = scene.triggered(trigger)
    (snapshot,) = scene.snapshots()
    eventually("failed", lambda: scene.snapshots()[0].control.story[-1].state == "Failed")

    failed = scene.condition("ps", snapshot.metadata.name, "StorageReplicated")
    assert answer["reason"] in {"Complete", "Failed"}
    assert failed is not None
    assert failed["reason"] == "Failed"
    assert "UploadFailed" in failed["message"]
    assert scene.nonce("first") == nonce
    eventually("clean staging", lambda: scene.staged() == [])


def test_no_space_in_staging_refuses_the_save_before_the_pod_pauses(scene: Scene) -> None:
    """The figures are in the message, and runsc was never called."""
    scene.policy()
    scene.ready_pod("first")
    staging = str(scene.node_state / "staging")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", staging]
    scene.cluster.run_in("node1", mount)
    try:
        answer = scene.triggered(scene.trigger("first"))
    finally:
        scene.cluster.run_in("node1", ["umount", "--lazy", staging])

    assert answer["reason"] == "Failed"
    assert "NoSpace" in answer["message"]
    assert "MiB free" in answer["message"]
    assert scene.nonce("first")


def test_a_flipped_byte_is_never_restored(scene: Scene) -> None:
    """The Pod starts cold, its event names the part, the snapshot is out of use."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    scene.forget_cached_images()
    pages = scene.bucket / snapshot.metadata.name / "pages.img"
    with pages.open("r+b") as file:
        file.seek(pages.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))

    scene.ready_pod("second")

    assert scene.nonce("second") != scene.nonce("first")
    assert "pages.img" in scene.event("second", "falling back to a cold start")
    name = snapshot.metadata.name
    eventually("out of use", lambda: not scene.is_true("ps", name, "Ready"))
    ready = scene.condition("ps", name, "Ready")
    assert ready is not None
    assert ready["reason"] == "Obsolete"
    assert "pages.img" in ready["message"]


def test_a_part_that_was_cut_is_never_restored(scene: Scene) -> None:
    """As a flipped byte, told by its length."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    scene.forget_cached_images()
    part = scene.bucket / snapshot.metadata.name / "pages_meta.img"
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size // 2)

    scene.ready_pod("second")

    assert scene.nonce("second") != scene.nonce("first")
    assert "pages_meta.img" in scene.event("second", "falling back to a cold start")


def test_a_tag_that_means_another_image_by_now_starts_cold(scene: Scene, tmp_path: Path) -> None:
    """The spec is equal, only the image's ID differs; the same Pod starts over, cold."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    nonce = scene.nonce("first")
    recipe = tmp_path / "counter"
    shutil.copytree(COUNTER, recipe)
    shutil.copytree(COUNTER.parent / "images", tmp_path / "images")
    program = recipe / "counter.py"
    program.write_text(program.read_text() + "\n# another build\n")
    original = build_image(COUNTER, cache=_cache(), progress=print)
    changed = build_image(recipe, cache=_cache(), progress=print)
    assert original.image_id != changed.image_id
    scene.cluster.load(changed.archive)
    try:
        scene.ready_pod("second")
    finally:
        scene.cluster.load(original.archive)

    assert scene.nonce("second") != nonce
    assert scene.restored_from("second") == ""
    told = scene.event("second", "falling back to a cold start")
    assert "spec.containers[counter].image" in told
    assert changed.image_id in told


def test_without_the_agent_pods_start_cold_and_at_once(scene: Scene) -> None:
    """The runtime asks nobody for long, and when the agent is back restores go on."""
    scene.policy()
    scene.ready_pod("first")
    scene.save("first")
    agent = scene.cluster.component("node1", "agent")
    agent.stop()
    try:
        second = scene.ready_pod("second")
    finally:
        agent.start()

    assert scene.nonce("second") != scene.nonce("first")
    assert scene.condition("pod", "second", "PodRestored") is None
    # A cold start of this Pod takes about a second; the issue allows two more.
    assert second.create_to_running_s < 10
    eventually("the agent", lambda: _restores(scene), limit_s=30)


def _restores(scene: Scene) -> bool:
    name = f"later-{len(scene.times.pods('counter'))}"
    scene.ready_pod(name)
    return bool(scene.restored_from(name))


def test_a_corrupt_image_in_the_cache_costs_one_start_and_no_pod(scene: Scene) -> None:
    """What runsc cannot load ends as a cold start in the same Pod, told on it."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    assert snapshot.capture is not None
    name = snapshot.capture.manifest_digest.removeprefix("sha256:")
    image = scene.node_state / "cache" / name / "checkpoint.img"
    stat = image.stat()
    with image.open("r+b") as file:
        file.seek(stat.st_size // 2)
        file.write(b"\0" * 4096)
    import os

    # As a failing disk would do it: the file looks as it did when it was verified.
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    scene.ready_pod("second")

    assert scene.nonce("second") != scene.nonce("first")
    told = scene.event("second", "falling back to a cold start")
    assert snapshot.metadata.name in told
    condition = scene.condition("pod", "second", "PodRestored")
    assert condition is not None
    assert condition["reason"] == "FailedToRestore"


def test_a_snapshot_deleted_while_pods_restore_hurts_none_of_them(scene: Scene) -> None:
    """Each Pod ends Ready, restored or cold, and the bytes are gone."""
    scene.policy()
    scene.ready_pod("first")
    snapshot = scene.save("first")
    scene.forget_cached_images()

    for number in range(3):
        scene.pod(f"clone-{number}")
    scene.kubectl("delete", "ps", snapshot.metadata.name, "--wait", "--timeout=30s")

    for number in range(3):
        scene.wait_ready(f"clone-{number}")
        assert scene.nonce(f"clone-{number}")
    assert scene.stored() == set()


def _cache() -> Path:
    from localcluster.images import default_cache

    return default_cache()
