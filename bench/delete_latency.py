# SPDX-License-Identifier: Apache-2.0
"""What a policy with ``onDelete`` adds to ``kubectl delete pod``, as a multiple of the save.

The same Pod with and without the policy, in turn, until kubectl says that it is gone. The trap is
the kubelet, which looks at its containers once a second, so that a deletion takes up to a second
more or less; and that second begins at the Pod's own start. So each pair begins at another part of
it, and the means are compared: over a whole second the chance is the same on both sides.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from figure import Figure, Target
from room import BenchError, Room, room, ticker_spec

from localcluster.cluster import LocalCluster
from localcluster.pod_times import Observed
from policies.identity import parting_snapshot_name
from schemas.instants import parse_time
from schemas.snapshot import Snapshot

PAIRS = 10
BALLAST_MIB = 512
_KUBELET_LOOKS_EVERY_S = 1.0
_TELL_EVERY = 5


@dataclass(frozen=True, slots=True)
class Deletion:
    """How long a deletion with a save took, and its parts; wall clock of this machine."""

    took_s: float
    until_claim_s: float
    claim_to_write_s: float
    write_s: float
    after_write_s: float
    size_bytes: int


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Delete Pods with and without the policy in turn."""
    plain_s: list[float] = []
    saving: list[Deletion] = []
    with room(cluster, "on-delete") as place:
        place.add_policy("onDelete")
        for number in range(PAIRS + 1):  # the first pair warms up
            for governed in (True, False) if number % 2 else (False, True):
                name = f"{'saved' if governed else 'plain'}-{number}"
                seen = place.seed(name, ticker_spec(BALLAST_MIB), governed=governed)
                time.sleep(number % PAIRS * _KUBELET_LOOKS_EVERY_S / PAIRS)
                if governed:
                    deletion = _delete_saved(place, seen)
                    saving += [deletion] if number else []
                else:
                    took_s = _delete(place, name)
                    plain_s += [took_s] if number else []
            if number and number % _TELL_EVERY == 0:
                pair = f"saved {saving[-1].took_s:.2f} s, plain {plain_s[-1]:.2f} s"
                say(f"{number}/{PAIRS}  {pair}, save {saving[-1].write_s:.2f} s")
    return [
        Figure.of(
            plain_s,
            part="on-delete",
            name="kubectl delete",
            unit="s",
            covers="the command from start to exit, of a Pod that no policy governs",
        ),
        *_parts(saving),
        Figure.of(
            [(fmean(s.took_s for s in saving) - fmean(plain_s)) / fmean(s.write_s for s in saving)],
            part="on-delete",
            name="added : save",
            unit="x",
            target=Target(limit=1.5),
            covers="mean with the policy less mean without it, by the mean save",
        ),
    ]


def _parts(saving: list[Deletion]) -> list[Figure]:
    size_mb = saving[-1].size_bytes / 1e6
    rows = (
        (
            "kubectl delete with a save",
            [s.took_s for s in saving],
            f"the same Pod under a policy with onDelete; image of {size_mb:.0f} MB",
        ),
        (
            "of it until the claim",
            [s.until_claim_s for s in saving],
            "kubectl, API server, kubelet, the signal's way to the agent, the new PodSnapshot",
        ),
        (
            "of it the claim",
            [s.claim_to_write_s for s in saving],
            "the claim's write, until runsc checkpoint is started",
        ),
        (
            "of it the save",
            [s.write_s for s in saving],
            "runsc checkpoint from start to exit, by the snapshot's record",
        ),
        (
            "of it after the save",
            [s.after_write_s for s in saving],
            "the signal passes on, and the Pod ends as any does while its image is sealed",
        ),
    )
    return [
        Figure.of(samples, part="on-delete", name=name, unit="s", covers=covers)
        for name, samples, covers in rows
    ]


def _delete(place: Room, name: str) -> float:
    began_s = time.monotonic()
    place.cluster.kubectl("--namespace", place.namespace, "delete", "pod", name)
    return time.monotonic() - began_s


def _delete_saved(place: Room, seen: Observed) -> Deletion:
    """Delete a governed Pod, look at the save that it left, and remove the snapshot."""
    began_at = time.time()
    took_s = _delete(place, seen.pod.metadata.name)
    saved = place.available(parting_snapshot_name(seen.pod.metadata.uid))
    deletion = _deletion(saved, began_at, took_s)
    place.remove_snapshot(saved.metadata.name)
    return deletion


def _deletion(saved: Snapshot, began_at: float, took_s: float) -> Deletion:
    record = saved.capture
    claimed = parse_time(record.claimed_at) if record else None
    written = parse_time(record.checkpointed_at) if record else None
    if record is None or claimed is None or written is None:
        raise BenchError(f"{saved.metadata} is Ready and has no whole record of its save")
    until_claim_s = claimed.timestamp() - began_at
    until_written_s = written.timestamp() - began_at
    return Deletion(
        took_s=took_s,
        until_claim_s=until_claim_s,
        claim_to_write_s=until_written_s - until_claim_s - record.checkpoint_s,
        write_s=record.checkpoint_s,
        after_write_s=took_s - until_written_s,
        size_bytes=record.size_bytes,
    )
