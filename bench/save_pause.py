# SPDX-License-Identifier: Apache-2.0
"""How long an application stands still while it is saved, by the size of its memory.

The application itself tells: it ticks every 5 ms and remembers the longest time between two ticks.
Its memory is random, so nothing is won by compression or zero pages. The trap is a busy machine,
on which a tick is late without any save; that is measured too, just before each save.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from figure import Figure
from room import BenchError, Room, ask, room, ticker_spec

from backends.kube.client import POD_SNAPSHOT_MANUAL_TRIGGERS
from localcluster.cluster import LocalCluster
from schemas.snapshot import CaptureRecord

BALLAST_MIB = (256, 512, 1024)
SAVES = 3
_QUIET_S = 1.0


@dataclass(frozen=True, slots=True)
class Save:
    """What the application saw of one save, and what the node recorded of it."""

    quiet_s: float
    pause_s: float
    record: CaptureRecord

    @property
    def size_gb(self) -> float:
        """The image's size."""
        return self.record.size_bytes / 1e9


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save Pods of several sizes, each several times."""
    figures: list[Figure] = []
    saves: list[Save] = []
    with room(cluster, "pause") as place:
        place.add_policy()
        for ballast_mib in BALLAST_MIB:
            name = f"ballast-{ballast_mib}"
            address = place.seed(name, ticker_spec(ballast_mib)).pod.pod_ip
            of_size = [_save(place, name, address) for _ in range(SAVES)]
            place.remove_pod(name)
            last = of_size[-1]
            say(f"{last.size_gb:.2f} GB  pause {last.pause_s:.2f} s")
            figures += _figures(f"{last.size_gb:.2f} GB", of_size)
            saves += of_size
    return [
        *figures,
        Figure.of(
            [s.pause_s / s.size_gb for s in saves],
            part="pause",
            name="pause per GB saved",
            unit="s/GB",
            covers="the pause seen by the application by the image's size, all saves above",
        ),
        Figure.of(
            [1e3 * s.quiet_s for s in saves],
            part="pause",
            name="pause without a save",
            unit="ms",
            covers=f"the longest time between two ticks in {_QUIET_S:g} s before each save: what "
            "the machine alone does",
        ),
    ]


def _figures(size: str, saves: list[Save]) -> list[Figure]:
    return [
        Figure.of(
            [s.pause_s for s in saves],
            part="pause",
            name=f"{size}, pause",
            unit="s",
            covers="the application's longest time between two ticks, its monotonic clock, from "
            "before the trigger until the snapshot is Ready",
        ),
        Figure.of(
            [s.record.checkpoint_s for s in saves],
            part="pause",
            name=f"{size}, runsc checkpoint",
            unit="s",
            covers="the process from start to exit, by the snapshot's record",
        ),
    ]


def _save(place: Room, pod: str, address: str) -> Save:
    """Save once and ask the application for its longest gap."""
    ask(address, data=b"")
    time.sleep(_QUIET_S)
    quiet = ask(address)
    ask(address, data=b"")
    saved = place.save(pod)
    gaps = ask(address)
    if not quiet or not gaps:
        raise BenchError(f"Pod {pod} does not answer")
    if saved.capture is None:
        raise BenchError(f"{saved.metadata} is Ready and has no record of its save")
    if gaps["wall_s"] - gaps["monotonic_s"] > quiet["wall_s"]:
        raise BenchError(
            f"the application's monotonic clock stood still while it was saved: {gaps}"
        )
    place.client.delete(POD_SNAPSHOT_MANUAL_TRIGGERS, f"save-{pod}", namespace=place.namespace)
    place.remove_snapshot(saved.metadata.name)
    return Save(quiet["monotonic_s"], gaps["monotonic_s"], saved.capture)
