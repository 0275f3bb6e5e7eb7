# SPDX-License-Identifier: Apache-2.0
"""What the runtime adds to each runsc call of a Pod that no policy governs.

Per subcommand as the shim calls it, in turn with the same call without the runtime; only the
difference within a round is used. ``state`` is also timed with the real runsc on the live sandbox,
which shows that the difference is the same when runsc does something.
"""

from collections.abc import Callable

from figure import Figure, Target
from room import BenchError, counter_spec, room
from runtime_calls import NOTHING, Case, RuntimeCalls, bundle_of, global_flags, spec_text

from localcluster.cluster import LocalCluster
from schemas.metadata import Metadata

ROUNDS = 60
_REAL = "state, real runsc"
_PAIR = ("runtime", "direct")


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Start a Pod without a policy and time the calls about it."""
    calls = RuntimeCalls(cluster)
    with room(cluster, "wrapper") as place:
        seen = place.seed("ungoverned", counter_spec())
        sandbox, container = place.container_ids("ungoverned")
        specs = {c: spec_text(place.spec_of(c)) for c in (sandbox, container)}
        calls.copy()
        cases = _cases(calls, seen.pod.metadata, sandbox, container, specs)
        timed = calls.run(cases, rounds=ROUNDS)
    for case in timed:
        if any("podsnap.json" in path for path in case.left):
            raise BenchError(f"{case.name}: the Pod is governed, though its room has no policy")
    say(f"{len(timed)} kinds of calls, {ROUNDS} rounds")
    target = Target(limit=15)
    figures = [
        Figure.of(
            case.added_ms(*_PAIR),
            part="wrapper",
            name=f"added to {case.name}",
            unit="ms",
            target=target,
            covers="with the runtime less without it, in the same round",
        )
        for case in timed
    ]
    real = next(case for case in timed if case.name == _REAL)
    life = [added for case in timed if case is not real for added in case.added_ms(*_PAIR)]
    return [
        Figure.of(
            life,
            part="wrapper",
            name="added to any call",
            unit="ms",
            target=target,
            covers="all calls of a Pod's life below, each as often as the others",
        ),
        *figures,
        Figure.of(
            real.ms["direct"],
            part="wrapper",
            name="runsc state itself",
            unit="ms",
            covers="the real runsc called directly on the live sandbox, for comparison",
        ),
    ]


def _cases(
    calls: RuntimeCalls, pod: Metadata, sandbox: str, container: str, specs: dict[str, str]
) -> list[Case]:
    """Return the shim's calls for one Pod, in the order of its life."""

    def case(name: str, target: str, *words: str) -> Case:
        bundle = bundle_of(target)
        arguments = [*global_flags(bundle, pod), *words, target]
        return Case(
            name=name,
            variants={
                "runtime": [str(calls.copied), *arguments],
                "direct": [str(NOTHING), *arguments],
            },
            files={str(bundle / "config.json"): specs[target]},
            keep=(str(bundle / "podsnap.json"),),
        )

    def create(name: str, target: str) -> Case:
        bundle = bundle_of(target)
        return case(
            name, target, "create", f"--bundle={bundle}", f"--pid-file={bundle / 'init.pid'}"
        )

    state = [*global_flags(bundle_of(sandbox), pod), "state", sandbox]
    return [
        create("create of a sandbox", sandbox),
        case("start of a sandbox", sandbox, "start"),
        create("create of a container", container),
        case("start of a container", container, "start"),
        case("state", container, "state"),
        case("wait", container, "wait"),
        case("kill", container, "kill", "--all"),
        case("delete", container, "delete", "--force"),
        Case(
            name=_REAL,
            variants={
                "runtime": [str(calls.installed), *state],
                "direct": [str(calls.runsc), *state],
            },
        ),
    ]
