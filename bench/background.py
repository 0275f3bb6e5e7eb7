# SPDX-License-Identifier: Apache-2.0
"""The first answer of a Pod of 1 GiB: its memory fetched first, or coming in behind it.

The bucket lets 500 MB/s through, all readers together: it is the cluster's directory, seen through
a mount that keeps the pace and costs processor time of its own, on both ways alike. The trap is an
image that is still on the node; so the cache is emptied, and its mounts ended, before each start.
"""

import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from figure import Figure, Target
from room import BenchError, Room, ask, room, ticker_spec, until

from backends.kube.client import POD_SNAPSHOT_POLICIES, PODS
from localcluster.cluster import LocalCluster
from localcluster.fuse_library import fuse_library
from localcluster.toolchain import default_cache
from schemas.conditions import Condition, parse_conditions
from schemas.names import BACKGROUND_LOADING_ANNOTATION, PAGES_LOCAL

BALLAST_MIB: Final = 1024
BUCKET_BYTES_PER_S: Final = 500e6
ROUNDS: Final = 3
_LIMIT_S: Final = 60.0
_LOOK_S: Final = 0.02
_P99: Final = re.compile(r"p99 (\d+) ms")


@dataclass(slots=True)
class Way:
    """One way to get the memory; ``option`` is what the policy's annotation says."""

    name: str
    option: str
    seconds: list[float] = field(default_factory=list)


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Save one Pod, then start it again by either way in turn."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.cluster.slow_bucket import end_loads, slow_bucket

    library = fuse_library(default_cache(), progress=say)
    behind = Way("loaded behind the Pod", "true")
    first = Way("fetched first", "false")
    waits_ms: list[float] = []
    with room(cluster, "background") as place:
        place.add_policy()
        place.seed("seed", ticker_spec(BALLAST_MIB))
        size_mb = place.save("seed").capture.size_bytes / 1e6  # type: ignore[union-attr] # Ready
        place.remove_pod("seed")
        bucket = cluster.buckets / place.namespace
        with slow_bucket(cluster, bucket, library, BUCKET_BYTES_PER_S):
            for number in range(ROUNDS):
                for way in (behind, first) if number % 2 else (first, behind):
                    end_loads(cluster)
                    _forget_images(cluster)
                    pages = _start(place, way, f"{way.option}-{number}")
                    waits_ms += [float(ms) for ms in _P99.findall(pages)]
                say(f"{number + 1}/{ROUNDS}  {first.seconds[-1]:.2f} : {behind.seconds[-1]:.2f} s")
            end_loads(cluster)
    covers = (
        f"create to the first answer of a Pod whose image has {size_mb:.0f} MB, bucket 500 MB/s"
    )
    return [
        *(
            Figure.of(way.seconds, part="background", name=way.name, unit="s", covers=covers)
            for way in (first, behind)
        ),
        Figure.ratio(
            behind.seconds,
            first.seconds,
            part="background",
            name="behind : first",
            target=Target(limit=0.5),
            covers=covers,
        ),
        Figure.of(
            waits_ms or [0.0],
            part="background",
            name="page fault, p99",
            unit="ms",
            covers="of each load, what 99 of 100 reads that waited for the bucket waited at most",
        ),
    ]


def _start(place: Room, way: Way, name: str) -> str:
    """Start a Pod and wait for its answer, then for its memory; returns what was said of that."""
    annotations = {"metadata": {"annotations": {BACKGROUND_LOADING_ANNOTATION: way.option}}}
    place.client.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "policy",
        annotations,
        namespace=place.namespace,
        field_manager="podsnap-bench",
    )
    began_s = time.monotonic()
    place.create_pod(name, ticker_spec(BALLAST_MIB))
    seen = place.wait_pod(name, "has an address", lambda o: bool(o.pod.pod_ip))
    while not ask(seen.pod.pod_ip):
        if time.monotonic() - began_s > _LIMIT_S:
            raise BenchError(f"Pod {name} did not answer within {_LIMIT_S:.0f} s")
        time.sleep(_LOOK_S)
    way.seconds.append(time.monotonic() - began_s)
    seen = place.wait_pod(name, "restored", lambda o: bool(o.outcomes))
    if not seen.is_restored:
        raise BenchError(f"Pod {name} was not restored: {seen.outcomes}")
    message = ""
    if way.option == "true":
        told = until(
            f"all pages of Pod {name}", lambda: _pages(place, name, "True"), limit_s=_LIMIT_S
        )
        message = told.message
    elif _pages(place, name):
        raise BenchError(f"Pod {name} was loaded in the background")
    place.remove_pod(name)
    return message


def _pages(place: Room, name: str, status: str = "") -> Condition | None:
    pod = place.client.get(PODS, name, namespace=place.namespace)
    told = parse_conditions(pod["status"]).get(PAGES_LOCAL)
    return told if told is not None and status in {"", told.status} else None


def _forget_images(cluster: LocalCluster) -> None:
    for directory in (cluster.nodes[0].directory / "podsnap" / "cache").iterdir():
        shutil.rmtree(directory, ignore_errors=True)
