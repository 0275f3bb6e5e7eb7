# SPDX-License-Identifier: Apache-2.0
"""What a collector that is dead costs a restore: one that refuses, and one that never answers.

The node's agent is started anew for each of the three, with the environment that names the
collector, and the same Pod is restored by each. Turns are interleaved, because a machine gets
slower while it measures. A restore varies by a tenth of itself, so its time cannot show one percent
for certain; what is judged is the processor time that the agent spends on a restore, and the time
that the Pod waits is shown beside it.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from figure import Figure, Target, percentile
from idle_cost import processor_s
from room import BenchError, Room, counter_spec, room

from localcluster.cluster import LocalCluster

TURNS = 3
RESTORES = 6  # in each turn, after one that warms up
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
# As often as anybody would have them sent, so that each restore meets the dead collector.
_DELAY = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
_PORT_OF_NOBODY = 9


@dataclass(slots=True)
class Variant:
    """One environment of the agent, and what restores took under it."""

    name: str
    covers: str
    environment: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    @contextmanager
    def chosen(self, cluster: LocalCluster) -> Iterator[None]:
        """Start podsnap's programs with this environment; the next variant starts them anew."""
        before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("OTEL_")}
        os.environ.update(self.environment)
        try:
            cluster.up()
            yield
        finally:
            for key in self.environment:
                os.environ.pop(key, None)
            os.environ.update(before)

    def turn(self, place: Room, cluster: LocalCluster, number: int) -> None:
        """Restore the Pod some times."""
        _restore(place, f"{self.name}-{number}-warm")
        began_s = processor_s(cluster, "node1", "agent")
        for restore in range(RESTORES):
            self.seconds.append(_restore(place, f"{self.name}-{number}-{restore}"))
        used_s = processor_s(cluster, "node1", "agent") - began_s
        self.processor_s.append(used_s / RESTORES)


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save one Pod, then restore it with and without a collector that is dead."""
    # It takes connections, as a program that hangs does, and never reads.
    with closing(socket.create_server((str(cluster.network.gateway), 0))) as silent:
        refused = f"http://127.0.0.1:{_PORT_OF_NOBODY}"
        hangs = f"http://{cluster.network.gateway}:{silent.getsockname()[1]}"
        none = Variant("none", "no endpoint is set: nothing is told and nothing loaded", {})
        dead = [
            Variant("refused", "nobody listens at the endpoint", {_ENDPOINT: refused, **_DELAY}),
            Variant("silent", "the endpoint takes and never answers", {_ENDPOINT: hangs, **_DELAY}),
        ]
        variants = [none, *dead]
        with room(cluster, "collector") as place:
            place.add_policy()
            place.seed("seed", counter_spec())
            place.save("seed")
            place.remove_pod("seed")
            for number in range(TURNS):
                turn = number % len(variants)
                for variant in variants[turn:] + variants[:turn]:
                    with variant.chosen(cluster):
                        variant.turn(place, cluster, number)
                last = ", ".join(f"{v.name} {v.seconds[-1]:.2f} s" for v in variants)
                say(f"{number + 1}/{TURNS}  {last}")
        cluster.up()  # as it was
    return [*_figures(variants), *(f for v in dead for f in _compared(v, none))]


def _restore(place: Room, name: str) -> float:
    place.create_pod(name, counter_spec())
    seen = place.wait_pod(name, "restored", lambda o: bool(o.outcomes) and o.running_s is not None)
    if not seen.is_restored:
        raise BenchError(f"Pod {name} was not restored: {seen.outcomes}")
    place.remove_pod(name)
    return seen.create_to_running_s


def _figures(variants: list[Variant]) -> Iterator[Figure]:
    for variant in variants:
        yield Figure.of(
            variant.seconds, part="collector", name=variant.name, unit="s", covers=variant.covers
        )


def _compared(dead: Variant, none: Variant) -> Iterator[Figure]:
    yield Figure.ratio(
        dead.seconds,
        none.seconds,
        part="collector",
        name=f"{dead.name} : none",
        covers="create to Running; both vary by more than what is asked",
    )
    more_s = percentile(dead.processor_s, 0.5) - percentile(none.processor_s, 0.5)
    yield Figure.of(
        [100 * max(more_s, 0) / percentile(none.seconds, 0.5)],
        part="collector",
        name=f"{dead.name}, processor",
        unit="%",
        target=Target(limit=1),
        covers="of a restore: what the agent computes for one more than without a collector",
    )
