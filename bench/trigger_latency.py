# SPDX-License-Identifier: Apache-2.0
"""From a trigger's POST until runsc writes, and what podsnap adds to the whole save.

runsc's start is the birth of its first image file: it has been loaded and speaks to the sandbox by
then, so nothing of the way is left out. The record's ``claimedAt`` and the birth of the directory
show the steps. Everything is one machine's wall clock; the kernel's file times step by up to 4 ms.

``Complete`` promises that the image is sealed on the node's disk, so the seal (digests and fsync)
is part of what is added; its rate is shown apart, because it grows with the image and the rest does
not. The trap is the first save of a node, which reads runsc from disk: it is not counted.
"""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figure import Figure, Target
from room import POD_LIMIT_S, BenchError, Room, counter_spec, room

from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS, KubeClient
from backends.kube.reflector import Reflector
from localcluster.cluster import LocalCluster
from schemas.instants import parse_time
from schemas.snapshot import CaptureRecord, Snapshot
from schemas.trigger import ManualTrigger

SAVES = 20


@dataclass(frozen=True, slots=True)
class Save:
    """One save: seconds since the POST at which things were so, and the node's record."""

    claimed_s: float
    directory_s: float
    image_s: float
    complete_s: float
    record: CaptureRecord


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
    with room(cluster, "trigger") as place:
        place.add_policy()
        place.seed("counter", counter_spec())
        times = TriggerTimes(place.client, place.namespace)
        times.start()
        try:
            _one(place, times, "warm-up")
            saves = [_one(place, times, f"save-{number}") for number in range(1, SAVES + 1)]
        finally:
            times.stop()
    size_mb = saves[-1].record.size_bytes / 1e6
    say(f"{SAVES} saves of {size_mb:.1f} MB")
    return [*_until_runsc(saves), *_around_runsc(saves, size_mb)]


def _until_runsc(saves: list[Save]) -> list[Figure]:
    return [
        Figure.of(
            [1e3 * s.image_s for s in saves],
            part="trigger",
            name="POST to runsc started",
            unit="ms",
            target=Target(limit=150),
            covers="from before the POST until runsc checkpoint has made its first image file",
        ),
        Figure.of(
            [1e3 * s.claimed_s for s in saves],
            part="trigger",
            name="of it until the claim",
            unit="ms",
            covers="the POST, the controller's PodSnapshot, the agent's watch and its checks",
        ),
        Figure.of(
            [1e3 * (s.directory_s - s.claimed_s) for s in saves],
            part="trigger",
            name="of it the claim",
            unit="ms",
            covers="the claim's write, until the agent makes the directory for the image",
        ),
        Figure.of(
            [1e3 * (s.image_s - s.directory_s) for s in saves],
            part="trigger",
            name="of it runsc's own start",
            unit="ms",
            covers="from the directory to the first image file: the runsc client loads",
        ),
    ]


def _around_runsc(saves: list[Save], size_mb: float) -> list[Figure]:
    added_ms = [1e3 * (s.complete_s - s.record.checkpoint_s) for s in saves]
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
            [a - 1e3 * s.record.seal_s for a, s in zip(added_ms, saves, strict=True)],
            part="trigger",
            name="the same less the seal",
            unit="ms",
            covers="what does not grow with the image: controller, agent, API server, watch",
        ),
        Figure.of(
            [1e3 * s.record.checkpoint_s for s in saves],
            part="trigger",
            name="runsc checkpoint",
            unit="ms",
            covers=f"the process from start to exit, image of {size_mb:.1f} MB",
        ),
        Figure.of(
            [s.record.size_bytes / 1e6 / max(s.record.seal_s, 1e-3) for s in saves],
            part="trigger",
            name="seal rate",
            unit="MB/s",
            covers="digests and fsync of the image; its P90 is a fast one",
        ),
    ]


def _one(place: Room, times: TriggerTimes, name: str) -> Save:
    """Save once, and remove what came of it."""
    began_s, began_at = time.monotonic(), time.time()
    place.create_trigger(name, "counter")
    ended_s, trigger = times.answer(name)
    saved = place.saved_by(trigger)  # waits for the upload: the next save finds a quiet node
    if saved.capture is None:
        raise BenchError(f"{saved.metadata} is Ready and has no record of its save")
    directory_at, image_at = _births(place, saved)
    claimed = parse_time(saved.capture.claimed_at)
    if claimed is None or not began_at < claimed.timestamp() < image_at:
        raise BenchError(f"{saved.metadata} was claimed at {saved.capture.claimed_at}, not between")
    place.client.delete(POD_SNAPSHOT_MANUAL_TRIGGERS, name, namespace=place.namespace)
    place.remove_snapshot(saved.metadata.name)
    return Save(
        claimed_s=claimed.timestamp() - began_at,
        directory_s=directory_at - began_at,
        image_s=image_at - began_at,
        complete_s=ended_s - began_s,
        record=saved.capture,
    )


def _births(place: Room, saved: Snapshot) -> tuple[float, float]:
    """Return when an image's directory and the first file that runsc made in it came to be.

    Raises:
        BenchError: the file system does not keep it.
    """
    directory = place.image_dir(saved)
    of_directory, *of_files = (_birth(path) for path in (directory, *directory.glob("*.img")))
    if not of_files or min(of_directory, *of_files) <= 0:
        raise BenchError(f"the file system of {directory} does not say when a file was made")
    return of_directory, min(of_files)


def _birth(path: Path) -> float:
    argv = ["stat", "--format=%.9W", str(path)]
    return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
