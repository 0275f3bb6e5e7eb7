# SPDX-License-Identifier: Apache-2.0
"""What ``podsnap nodes`` shows: kinds of nodes, and which snapshots each can run.

Nodes that can run the same are one row. Asked about another gVisor beforehand, a row also says
what that would make void there: every memory image that another version saved, since gVisor reads
back only what the same build wrote.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from policies.obsolescence import NodeClass, can_run, node_classes
from schemas.node_facts import NodeFacts
from schemas.snapshot import CaptureRecord, Compatibility, Snapshot


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One kind of node.

    ``seen_s`` is the age of the newest sign of life in seconds; ``runs`` the stored snapshots
    (namespace/name) that it can run, ``loses`` those of them that the asked version cannot.
    """

    nodes: tuple[str, ...]
    seen_s: float
    runsc_version: str
    runsc_digest: str
    platform: str
    architecture: str
    machine_series: str
    cpu_features: int
    runs: tuple[str, ...]
    loses: tuple[str, ...] = ()


def node_rows(
    nodes: Iterable[NodeFacts],
    snapshots: Iterable[Snapshot],
    now: datetime,
    *,
    if_runsc: str = "",
) -> list[NodeRow]:
    """Return one row for each kind of node, the largest kind first.

    With ``if_runsc`` (a version as the rows show it) they say what a roll to it would make void.
    """
    stored = [
        (str(s.metadata), s.capture) for s in snapshots if s.capture is not None and s.is_stored
    ]
    rows = [_row(kind, stored, now, if_runsc) for kind in node_classes(nodes)]
    return sorted(rows, key=lambda row: (-len(row.nodes), row.nodes))


def void_after(rows: Sequence[NodeRow]) -> list[str]:
    """Return the snapshots that some node runs now and none would after the roll."""
    lost = {name for row in rows for name in row.loses}
    kept = {name for row in rows for name in row.runs if name not in row.loses}
    return sorted(lost - kept)


def _row(
    kind: NodeClass, stored: Sequence[tuple[str, CaptureRecord]], now: datetime, if_runsc: str
) -> NodeRow:
    node = kind.compatibility
    runs = [(name, capture) for name, capture in stored if can_run(capture, node)]
    return NodeRow(
        nodes=kind.nodes,
        seen_s=max(now.timestamp() - kind.seen_at_s, 0.0),
        runsc_version=node.runsc_version,
        runsc_digest=node.runsc_digest,
        platform=node.platform,
        architecture=node.architecture,
        machine_series=node.machine_series,
        cpu_features=len(node.cpu_features),
        runs=tuple(sorted(name for name, _ in runs)),
        loses=tuple(
            sorted(n for n, c in runs if if_runsc and not can_run(c, _rolled(node, c, if_runsc)))
        ),
    )


def _rolled(node: Compatibility, capture: CaptureRecord, version: str) -> Compatibility:
    """Return the node after the roll; which build comes is not known, so the image's is assumed."""
    build = capture.compatibility.runsc_digest
    return replace(node, runsc_version=version, runsc_digest=build)
