# SPDX-License-Identifier: Apache-2.0
"""Ten restores of one snapshot at once, and ten trivial cold starts: until the last is Ready.

All ten share the cores, the image's pages and the agent. The trap is a restore that quietly became
a cold start: each restored Pod must know what only the saved one's memory held.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from figure import Figure, Target
from room import POD_LIMIT_S, BenchError, Room, ask, counter_spec, room, until

from backends.kube.client import PODS
from localcluster.cluster import LocalCluster
from localcluster.pod_times import Observed

ROUNDS = 3
HERD = 10


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save one Pod, then start herds, restored and cold in turn."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with room(cluster, "herd") as place:
        place.add_policy()
        seed = place.seed("seed", counter_spec())
        nonce = ask(seed.pod.pod_ip)["nonce"]
        place.save("seed")
        place.remove_pod("seed")
        for number in range(1, ROUNDS + 1):
            for restored in (True, False) if number % 2 else (False, True):
                seconds[restored].append(_herd(place, number, nonce, restored=restored))
            pair = f"restored {seconds[True][-1]:.2f} s, cold {seconds[False][-1]:.2f} s"
            say(f"{number}/{ROUNDS}  {pair}")
    return [
        Figure.of(
            seconds[True],
            part="herd",
            name=f"{HERD} restored at once",
            unit="s",
            covers="from before the first create until the last Pod is Ready, no readiness probe; "
            "each Pod has the saved one's nonce, no container was started twice",
        ),
        Figure.of(
            seconds[False],
            part="herd",
            name=f"{HERD} trivial cold at once",
            unit="s",
            covers="the same Pods without a policy",
        ),
        Figure.ratio(
            seconds[True],
            seconds[False],
            part="herd",
            name="restored : trivial cold",
            target=Target(limit=1.3),
            covers=f"herd by herd of {HERD}",
        ),
    ]


def _herd(place: Room, number: int, nonce: str, *, restored: bool) -> float:
    """Start a herd, check every Pod of it, remove it; return create to the last Ready."""
    kind = "restored" if restored else "cold"
    names = [f"{kind}-{number}-{each}" for each in range(HERD)]

    def create(name: str) -> None:
        place.create_pod(name, counter_spec(), governed=restored)

    began_s = time.monotonic()
    with ThreadPoolExecutor(HERD) as pool:
        list(pool.map(create, names))
    herd = [place.wait_pod(name, "Ready", lambda o: o.ready_s is not None) for name in names]
    for seen in herd:
        _check(place, seen, nonce, restored=restored)
    place.remove_pods(names)
    return max(seen.ready_s or 0 for seen in herd) - began_s


def _check(place: Room, seen: Observed, nonce: str, *, restored: bool) -> None:
    """Make sure that a Pod is restored, or is not, and that nothing went wrong on the way."""
    name = seen.pod.metadata.name
    if restored:
        place.wait_pod(name, "restored", lambda o: bool(o.outcomes))
    answer = until(f"an answer of {name}", lambda: ask(seen.pod.pod_ip), limit_s=POD_LIMIT_S)
    if seen.is_restored is not restored or (answer["nonce"] == nonce) is not restored:
        raise BenchError(f"Pod {name}: restored is {seen.is_restored}: {seen.outcomes}")
    status = place.client.get(PODS, name, namespace=place.namespace)["status"]
    if restarts := sum(each["restartCount"] for each in status["containerStatuses"]):
        raise BenchError(f"Pod {name} had {restarts} restarts")
