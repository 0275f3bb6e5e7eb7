# SPDX-License-Identifier: Apache-2.0
"""The tiny example, restored and cold in turn: create to Running.

A Pod that has nothing to load gains nothing from a snapshot; this bounds what it may lose. All are
bare Pods of one spec. The trivial cold one is governed by no policy; the governed cold one differs
from the restored one only in the annotation that forbids a restore. The trap is drift: a machine
gets slower while it measures, so the three are started back to back, each time in another order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from figure import Figure, Target
from room import NEVER_RESTORE, BenchError, Room, counter_spec, room

from localcluster.cluster import LocalCluster

ROUNDS = 12
_TELL_EVERY = 4


@dataclass(slots=True)
class Kind:
    """One way to start the Pod, and how long it took each time."""

    name: str
    covers: str
    governed: bool = True
    annotations: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def is_restored(self) -> bool:
        """Whether its Pods come back from the snapshot."""
        return self.governed and not self.annotations

    def start(self, place: Room, name: str) -> float:
        """Start a Pod, check that it started as it should, remove it; return create to Running."""
        place.create_pod(name, counter_spec(), annotations=self.annotations, governed=self.governed)
        seen = place.wait_pod(name, "Running", lambda o: o.running_s is not None)
        if self.is_restored:
            seen = place.wait_pod(name, "restored", lambda o: bool(o.outcomes))
        if seen.is_restored is not self.is_restored:
            raise BenchError(f"Pod {name}: restored is {seen.is_restored}: {seen.outcomes}")
        place.remove_pod(name)
        return seen.create_to_running_s


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save one Pod, then start one of each kind in turn."""
    restored = Kind("restored", "create to Running as one watch sees both, no readiness probe")
    cold = Kind(
        "governed cold",
        "the same Pod with ps-name empty: its sandbox is prepared, nothing is restored",
        annotations=NEVER_RESTORE,
    )
    trivial = Kind("trivial cold", "the same Pod without a policy", governed=False)
    kinds = [restored, cold, trivial]
    with room(cluster, "small") as place:
        place.add_policy()
        place.seed("seed", counter_spec())
        place.save("seed")
        place.remove_pod("seed")
        for number in range(ROUNDS + 1):
            turn = number % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                took_s = kind.start(place, f"{kind.name.replace(' ', '-')}-{number}")
                if number:  # the first round warms up
                    kind.seconds.append(took_s)
            if number and number % _TELL_EVERY == 0:
                last = ", ".join(f"{k.name} {k.seconds[-1]:.2f} s" for k in kinds)
                say(f"{number}/{ROUNDS}  {last}")
    return [
        *(
            Figure.of(k.seconds, part="small", name=k.name, unit="s", covers=k.covers)
            for k in kinds
        ),
        Figure.ratio(
            restored.seconds,
            trivial.seconds,
            part="small",
            name="restored : trivial cold",
            target=Target(limit=1.3),
            covers="what a policy with a snapshot costs a Pod that has nothing to load",
        ),
        Figure.ratio(
            restored.seconds,
            cold.seconds,
            part="small",
            name="restored : governed cold",
            target=Target(limit=1.5, p90_too=True),
            covers="median by median and 90th percentile by 90th percentile; both are judged",
        ),
    ]
