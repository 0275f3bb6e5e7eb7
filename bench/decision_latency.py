# SPDX-License-Identifier: Apache-2.0
"""From the runtime's start for a sandbox's ``create`` to its decision being on disk.

Asked again and again for one Pod that was really restored: each answer is a whole decision by the
live agent (matching, image in the node's cache), and the record that the runtime writes is checked.
Its namespace has 200 snapshots, all of which fit and have to be judged: copies of one real save
that seem a little older.

It covers more than the target asks: also the interpreter's start, the spec's rewriting and the step
into runsc.
"""

import json
from collections.abc import Callable

from copied_snapshots import copy_snapshot
from figure import Figure, Target
from room import BenchError, counter_spec, room
from runtime_calls import NOTHING, Case, RuntimeCalls, bundle_of, global_flags, spec_text

from localcluster.cluster import LocalCluster
from localcluster.node import RUNTIME_STATE

ROUNDS = 200
SNAPSHOTS = 200
_RECORD = "podsnap.json"


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Restore a Pod for real, then put the question of its sandbox again."""
    calls = RuntimeCalls(cluster)
    with room(cluster, "decision") as place:
        place.add_policy()
        place.seed("seed", counter_spec())
        saved = place.save("seed")
        copy_snapshot(place, saved, [saved.policy_name] * (SNAPSHOTS - 1))
        say(f"{SNAPSHOTS} snapshots in the namespace")
        place.create_pod("restored", counter_spec())
        seen = place.wait_pod("restored", "restored", lambda o: o.is_restored)
        sandbox = place.container_ids("restored")[0]
        bundle = bundle_of(sandbox)
        record = bundle / _RECORD
        arguments = [
            *global_flags(bundle, seen.pod.metadata),
            *("create", f"--bundle={bundle}", f"--pid-file={bundle / 'init.pid'}", sandbox),
        ]
        calls.copy()
        case = Case(
            name="create",
            variants={
                "runtime": [str(calls.copied), *arguments],
                "nothing": [str(NOTHING), *arguments],
            },
            files={str(bundle / "config.json"): spec_text(place.spec_of(sandbox))},
            # The note of a restore that has not proved itself yet: the next sandbox starts cold.
            remove=tuple(
                str(RUNTIME_STATE / notes / seen.pod.metadata.uid) for notes in ("attempts", "cold")
            ),
            keep=(str(record),),
        )
        timed = calls.run([case], rounds=ROUNDS)[0]
    decided = json.loads(timed.left.get(str(record), "{}"))
    if (decided.get("restore") or {}).get("snapshot") != saved.metadata.name:
        raise BenchError(f"the last decision is not the expected restore: {decided or 'no record'}")
    say(f"{ROUNDS} decisions to restore {saved.metadata.name}")
    return [
        Figure.of(
            timed.ms["runtime"],
            part="decision",
            name="sandbox create to decision",
            unit="ms",
            target=Target(limit=20, p99_limit=100),
            covers=(
                f"among {SNAPSHOTS} snapshots that fit: the runtime's process from spawn, through "
                "the agent's answer and the written record, to the end of a program that does "
                "nothing in runsc's place"
            ),
        ),
        Figure.of(
            timed.ms["nothing"],
            part="decision",
            name="the program that does nothing",
            unit="ms",
            covers="what of the number above is the start of any process",
        ),
    ]
