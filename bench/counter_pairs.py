# SPDX-License-Identifier: Apache-2.0
"""The tiny example, restored and cold in turn: create to Running.

A Pod that has nothing to load gains nothing from a snapshot; this bounds what it may lose. Both
sides are bare Pods of one spec, governed by one policy, and differ in the annotation that forbids a
restore. The trap is drift: a machine gets slower while it measures, so each pair is measured back
to back and every second pair in the other order.
"""

from collections.abc import Callable

from figure import Figure, Target
from room import NEVER_RESTORE, BenchError, Room, counter_spec, room

from localcluster.cluster import LocalCluster

PAIRS = 30
_TELL_EVERY = 5


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save one Pod, then start pairs of a restored and a cold one."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with room(cluster, "counter") as place:
        place.add_policy()
        place.seed("seed", counter_spec())
        place.save("seed")
        place.remove_pod("seed")
        for restored in (True, False):
            _one(place, f"warm-up-{restored}".lower(), restored=restored)
        for number in range(1, PAIRS + 1):
            for restored in (True, False) if number % 2 else (False, True):
                name = f"{'restored' if restored else 'cold'}-{number}"
                seconds[restored].append(_one(place, name, restored=restored))
            if number % _TELL_EVERY == 0:
                pair = f"restored {seconds[True][-1]:.2f} s, cold {seconds[False][-1]:.2f} s"
                say(f"{number}/{PAIRS}  {pair}")
    return [
        Figure.of(
            seconds[True],
            part="counter",
            name="restored",
            unit="s",
            covers="create to Running as one watch sees both, no readiness probe",
        ),
        Figure.of(
            seconds[False],
            part="counter",
            name="cold",
            unit="s",
            covers="the same Pod with ps-name empty: its sandbox is prepared, nothing is restored",
        ),
        Figure.ratio(
            seconds[True],
            seconds[False],
            part="counter",
            name="restored : cold",
            target=Target(limit=1.5, p90_too=True),
            covers="median by median and 90th percentile by 90th percentile; both are judged",
        ),
    ]


def _one(place: Room, name: str, *, restored: bool) -> float:
    """Start a Pod, check that it started as it should, remove it; return create to Running."""
    place.create_pod(name, counter_spec(), annotations={} if restored else NEVER_RESTORE)
    seen = place.wait_pod(name, "Running", lambda o: o.running_s is not None)
    if restored:
        seen = place.wait_pod(name, "restored", lambda o: bool(o.outcomes))
    if seen.is_restored is not restored:
        raise BenchError(f"Pod {name}: restored is {seen.is_restored}, outcomes {seen.outcomes}")
    place.remove_pod(name)
    return seen.create_to_running_s
