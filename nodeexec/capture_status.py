# SPDX-License-Identifier: Apache-2.0
"""What the saving node writes on a PodSnapshot.

One server-side apply holds all of this manager's fields, every time, because what an apply leaves
out is removed. Each write names the record that it follows: if the object holds another one by
then, the cache was old, another node was first, or the controller took the save away. Either way
the writer stops and looks anew. Applies carry the UID, so a deleted object stays deleted.
"""

from dataclasses import replace
from typing import Any

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOTS, KubeClient
from backends.kube.errors import NotFound
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

    def write(
        self, snapshot: Snapshot, record: CaptureRecord, state: State, message: str
    ) -> Snapshot:
        """Write a record after the one that ``snapshot`` holds; returns the object as it is now.

        Raises:
            Conflict: the object holds another record; look at it anew.
            NotFound: the object is gone; stop.
        """
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
        # An answer may be lost: then the object holds this very record already.
        expected = {_stage(snapshot), _stage(replace(snapshot, capture=record))}
        applied = self._client.apply(
            POD_SNAPSHOTS,
            {
                "apiVersion": API_VERSION,
                "kind": "PodSnapshot",
                "metadata": snapshot.metadata.identity(),
                "status": status,
            },
            field_manager=CAPTURE_MANAGER,
            subresource="status",
            unless=lambda live: _stage(Snapshot.parse(live)) not in expected,
        )
        written = Snapshot.parse(applied)
        return replace(written, capture=record)

    def is_over(self, snapshot: Snapshot) -> bool:
        """Ask whether a snapshot is gone, or going, or a failure, and so needs no bytes.

        Raises:
            ApiError: the API server does not say.
        """
        try:
            raw = self._client.get(
                POD_SNAPSHOTS, snapshot.metadata.name, namespace=snapshot.metadata.namespace
            )
        except NotFound:
            return True
        live = Snapshot.parse(raw)
        if live.metadata.uid != snapshot.metadata.uid or live.metadata.is_deleting:
            return True
        return live.capture is not None and live.capture.failure is not None


def _stage(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what tells one record of a save from the next."""
    record = snapshot.capture
    if record is None:
        return ()
    failed = record.failure.reason if record.failure else ""
    return (record.node, record.claimed_at, record.sealed_at, record.uploaded_at, failed)
