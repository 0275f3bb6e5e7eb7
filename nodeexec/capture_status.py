# SPDX-License-Identifier: Apache-2.0
"""What the saving node writes on a PodSnapshot.

One server-side apply holds all of this manager's fields, every time, because what an apply leaves
out is removed. The claim alone carries the resourceVersion that was read: of two nodes that want
the same save, one gets a conflict. Later applies carry the UID, so a deleted object stays deleted,
and are never forced: a controller that took the fields away makes the late agent stop.
"""

from dataclasses import replace
from typing import Any

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from schemas.conditions import render_conditions
from schemas.instants import to_time
from schemas.names import API_VERSION, CAPTURE_MANAGER
from schemas.snapshot import RECORD_VERSION, CaptureRecord, Snapshot
from statemachine.snapshot import State, capture_conditions


class CaptureStatus:
    """Writes the capture part of snapshots' status."""

    def __init__(self, client: KubeClient, clock: Clock) -> None:
        """Use the agent's own identity."""
        self._client = client
        self._clock = clock

    def claim(self, snapshot: Snapshot, record: CaptureRecord, *, contended: bool) -> Snapshot:
        """Take the save for this node; ``contended`` if other nodes may want it too.

        Raises:
            Conflict: somebody else changed the object since it was read; look again.
            NotFound: the object is gone.
        """
        message = f"being saved on node {record.node}"
        return self._apply(snapshot, record, State.CHECKPOINTING, message, lock=contended)

    def write(
        self, snapshot: Snapshot, record: CaptureRecord, state: State, message: str
    ) -> Snapshot:
        """Write progress. Returns the object as it is now.

        Raises:
            Conflict: the controller took the save away from this node; stop.
            NotFound: the object is gone; stop.
        """
        return self._apply(snapshot, record, state, message, lock=False)

    def _apply(
        self,
        snapshot: Snapshot,
        record: CaptureRecord,
        state: State,
        message: str,
        *,
        lock: bool,
    ) -> Snapshot:
        metadata = snapshot.metadata.identity()
        if lock:
            metadata["resourceVersion"] = snapshot.metadata.resource_version
        status: dict[str, Any] = {
            "conditions": render_conditions(
                capture_conditions(state, message),
                previous=snapshot.conditions,
                now=to_time(self._clock.now()),
            ),
            "observedCheckpointRetryCount": max(record.attempt - 1, 0),
            "podsnap": {"version": RECORD_VERSION, "capture": record.to_object()},
        }
        if record.location is not None:
            status["storageStatus"] = {"gcs": {"observedGCSPath": record.location.url}}
        applied = self._client.apply(
            POD_SNAPSHOTS,
            {
                "apiVersion": API_VERSION,
                "kind": "PodSnapshot",
                "metadata": metadata,
                "status": status,
            },
            field_manager=CAPTURE_MANAGER,
            subresource="status",
        )
        written = Snapshot.parse(applied)
        return replace(written, capture=record)
