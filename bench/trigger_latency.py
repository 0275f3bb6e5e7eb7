# SPDX-License-Identifier: Apache-2.0
"""What podsnap adds to a save: trigger POST to ``Triggered=Complete``, less runsc's own time.

``Complete`` promises that the image is sealed on the node's disk, so the seal (digests and fsync)
is part of what is added; its rate is shown apart, because it grows with the image and the rest does
not. The trap is the first save of a node, which reads runsc from disk: it is not counted.
"""

import threading
import time
from collections.abc import Callable

from figure import Figure, Target
from room import POD_LIMIT_S, BenchError, Room, counter_spec, room

from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS, KubeClient
from backends.kube.reflector import Reflector
from localcluster.cluster import LocalCluster
from schemas.snapshot import CaptureRecord
from schemas.trigger import ManualTrigger

SAVES = 15


class TriggerTimes:
    """Watches triggers and stamps the instant at which each was first seen answered."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        """Nothing is seen before ``start``."""
        self._changed = threading.Condition()
        self._answered: dict[str, tuple[float, ManualTrigger]] = {}
        self._reflector = Reflector(
            client,
            POD_SNAPSHOT_MANUAL_TRIGGERS,
            project=ManualTrigger.parse,
            namespace=namespace,
            on_change=self._on_change,
        )

    def start(self) -> None:
        """Begin to watch."""
        self._reflector.start()
        self._reflector.synced.wait(10)

    def stop(self) -> None:
        """End the watch."""
        self._reflector.stop()

    def answer(self, name: str) -> tuple[float, ManualTrigger]:
        """Wait for a trigger's end; return when it was seen (monotonic seconds) and what it says.

        Raises:
            BenchError: it did not end.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: name in self._answered, POD_LIMIT_S):
                raise BenchError(f"trigger {name} has no answer after {POD_LIMIT_S:.0f} s")
            return self._answered[name]

    def _on_change(self, _: ManualTrigger | None, new: ManualTrigger | None) -> None:
        now_s = time.monotonic()
        if new is not None and new.is_answered:
            with self._changed:
                self._answered.setdefault(new.metadata.name, (now_s, new))
                self._changed.notify_all()


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save one Pod again and again."""
    totals_s: list[float] = []
    records: list[CaptureRecord] = []
    with room(cluster, "trigger") as place:
        place.add_policy()
        place.seed("counter", counter_spec())
        times = TriggerTimes(place.client, place.namespace)
        times.start()
        try:
            _one(place, times, "warm-up")
            for number in range(1, SAVES + 1):
                total_s, record = _one(place, times, f"save-{number}")
                totals_s.append(total_s)
                records.append(record)
        finally:
            times.stop()
    added_ms = [1e3 * (t - r.checkpoint_s) for t, r in zip(totals_s, records, strict=True)]
    unsealed_ms = [a - 1e3 * r.seal_s for a, r in zip(added_ms, records, strict=True)]
    size_mb = records[-1].size_bytes / 1e6
    say(f"{SAVES} saves of {size_mb:.1f} MB")
    return [
        Figure.of(
            added_ms,
            part="trigger",
            name="POST to Complete, less runsc",
            unit="ms",
            target=Target(limit=200),
            covers=(
                "from before the POST until one watch sees Triggered=Complete, less the time of "
                "runsc checkpoint in the snapshot's record; the seal is included"
            ),
        ),
        Figure.of(
            unsealed_ms,
            part="trigger",
            name="the same less the seal",
            unit="ms",
            covers="what does not grow with the image: controller, agent, API server, watch",
        ),
        Figure.of(
            [1e3 * r.checkpoint_s for r in records],
            part="trigger",
            name="runsc checkpoint",
            unit="ms",
            covers=f"the process from start to exit, image of {size_mb:.1f} MB",
        ),
        Figure.of(
            [r.size_bytes / 1e6 / max(r.seal_s, 1e-3) for r in records],
            part="trigger",
            name="seal rate",
            unit="MB/s",
            covers="digests and fsync of the image; its P90 is a fast one",
        ),
    ]


def _one(place: Room, times: TriggerTimes, name: str) -> tuple[float, CaptureRecord]:
    """Save once; return POST to Complete in seconds and the snapshot's record."""
    began_s = time.monotonic()
    place.create_trigger(name, "counter")
    ended_s, trigger = times.answer(name)
    saved = place.saved_by(trigger)  # waits for the upload: the next save finds a quiet node
    if saved.capture is None:
        raise BenchError(f"{saved.metadata} is Ready and has no record of its save")
    place.client.delete(POD_SNAPSHOT_MANUAL_TRIGGERS, name, namespace=place.namespace)
    place.remove_snapshot(saved.metadata.name)
    return ended_s - began_s, saved.capture
