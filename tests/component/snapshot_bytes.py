# SPDX-License-Identifier: Apache-2.0
"""Snapshots as an agent would have left them: bytes in a bucket, a record in the status."""

from typing import Any

from cluster_world import World

from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.objects.localdir import LocalDirStore
from nodeexec.upload import ATTEMPT_KEY, CLUSTER_KEY, NAMESPACE_KEY, SNAPSHOT_UID_KEY
from schemas.manifest import digest
from schemas.names import CAPTURE_MANAGER, FINALIZER, TRIGGER_TYPE_ANNOTATION
from schemas.snapshot import CaptureRecord
from schemas.storage_config import Location

PARTS = ("checkpoint.img", "pages.img", "manifest.json")


def marks(world: World, uid: str, *, cluster: str = "c1") -> dict[str, str]:
    """Return the custom metadata of a part."""
    return {
        CLUSTER_KEY: cluster,
        NAMESPACE_KEY: world.namespace,
        SNAPSHOT_UID_KEY: uid,
        ATTEMPT_KEY: "1",
    }


def put_parts(
    world: World, folder: str, uid: str, *, cluster: str = "c1", parts: tuple[str, ...] = PARTS
) -> None:
    """Store the parts of a snapshot below a folder of the bucket's ``snapshots``."""
    store = LocalDirStore(world.bucket)
    for part in parts:
        store.put_bytes(
            f"snapshots/{folder}/{part}",
            b"bytes",
            if_generation_match=0,
            metadata=marks(world, uid, cluster=cluster),
        )


def stored(world: World, folder: str = "") -> list[str]:
    """Return the names of what is in the bucket."""
    return sorted(i.name for i in LocalDirStore(world.bucket).list(f"snapshots/{folder}"))


def make_snapshot(world: World, agent: KubeClient, name: str) -> dict[str, Any]:
    """Create a snapshot that was saved and uploaded, and its bytes."""
    body = world.object("PodSnapshot", name, {"policyName": "web"})
    body["metadata"]["finalizers"] = [FINALIZER]
    # Any other save would be given up at once: there is no Pod.
    body["metadata"]["annotations"] = {TRIGGER_TYPE_ANNOTATION: "workload"}
    return complete(world, agent, world.create(POD_SNAPSHOTS, body))


def complete(world: World, agent: KubeClient, made: dict[str, Any]) -> dict[str, Any]:
    """Do the agent's part for a snapshot that is there: bytes in the bucket, then its record."""
    name, uid = made["metadata"]["name"], made["metadata"]["uid"]
    put_parts(world, name, uid)
    record = CaptureRecord(
        node="node-that-is-gone",
        attempt=1,
        pod_name="web-0",
        pod_uid="u",
        claimed_at="2026-01-01T10:00:00.000000Z",
        checkpointed_at="2026-01-01T10:00:01.000000Z",
        sealed_at="2026-01-01T10:00:02.000000Z",
        uploaded_at="2026-01-01T10:00:03.000000Z",
        size_bytes=15,
        location=Location(world.bucket.name, f"snapshots/{name}"),
        manifest_digest=digest(b"bytes"),
    )
    conditions = [
        {
            "type": kind,
            "status": "True",
            "reason": "Succeeded",
            "message": "",
            "lastTransitionTime": "2026-01-01T10:00:03Z",
        }
        for kind in ("Checkpoint", "StorageReplicated")
    ]
    body = world.object("PodSnapshot", name, None)
    body["metadata"]["uid"] = uid
    body["status"] = {
        "conditions": conditions,
        "podsnap": {"version": 1, "capture": record.to_object()},
    }
    return agent.apply(POD_SNAPSHOTS, body, field_manager=CAPTURE_MANAGER, subresource="status")
