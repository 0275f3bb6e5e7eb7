# SPDX-License-Identifier: Apache-2.0
"""``podsnap explain``: reads what one object's explanation needs, in two rounds of requests.

The first round needs no answer of another; the second asks only for what the first one named, with
selectors, so that a namespace with thousands of snapshots costs no more than one with ten. What the
user may not read is left out and named at the end.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.commands.connection import Cluster, asks_cluster
from reconciler.commands.exit_codes import CommandError, ExitCode
from reconciler.commands.output import OUTPUT, Block, Heading, Lines, give, plain
from reconciler.commands.snapshots import KIND as SNAPSHOT_KIND
from reconciler.commands.snapshots import snapshot_named

if TYPE_CHECKING:
    from concurrent.futures import Future

    from policies.retention import Doomed
    from reconciler.commands.reading import Reader
    from schemas.node_facts import NodeFacts
    from schemas.policy import Policy
    from schemas.storage_config import StorageConfig

_GROUP: Final = ".podsnapshot.gke.io"
_PAIR: Final = 2
_KINDS: Final = {
    **dict.fromkeys(("pod", "pods", "po"), "pod"),
    **dict.fromkeys(("snapshot", "snapshots", "podsnapshot", "podsnapshots", "ps"), "snapshot"),
    **dict.fromkeys(
        ("policy", "policies", "podsnapshotpolicy", "podsnapshotpolicies", "psp"), "policy"
    ),
    **dict.fromkeys(
        ("trigger", "triggers", "podsnapshotmanualtrigger", "podsnapshotmanualtriggers", "psmt"),
        "trigger",
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One explanation: for programs, its object's name, and for people."""

    value: object
    name: str
    blocks: Iterable[Block]


def _subject(
    context: click.Context, parameter: click.Parameter, words: tuple[str, ...]
) -> tuple[str, str]:
    """Return the kind and the name that are meant.

    Raises:
        click.UsageError: they are not a kind and a name.
    """
    kind, name = words if len(words) == _PAIR else "/".join(words).partition("/")[::2]
    found = _KINDS.get(kind.lower().removesuffix(_GROUP))
    if found is None or not name or "/" in name or len(words) > _PAIR:
        raise click.BadParameter(
            f"{' '.join(words)!r} does not say what to explain; write pod, snapshot, policy or "
            "trigger and a name, such as: podsnap explain pod web-0",
            context,
            parameter,
        )
    return found, name


@click.command()
@click.argument(
    "subject",
    nargs=-1,
    required=True,
    metavar="KIND NAME",
    callback=_subject,
    shell_complete=lambda *given: [kind for kind in _EXPLAINED if kind.startswith(given[-1])],
)
@OUTPUT
@asks_cluster
def explain(cluster: Cluster, *, subject: tuple[str, str], output: str) -> None:
    """Say why a Pod was restored or not, or what became of a snapshot, policy or trigger.

    KIND NAME or KIND/NAME, as kubectl takes them; KIND is pod, snapshot, policy or trigger, or what
    kubectl calls them (ps, psp, psmt).
    """
    from reconciler.commands.reading import Reader

    kind, name = subject
    answer = _EXPLAINED[kind](Reader(cluster, cluster.namespace), name, datetime.now(UTC))
    unknown = sorted(set(cluster.unknown))
    give(
        output,
        {"kind": kind, **plain(answer.value), "unknown": unknown},
        names=[answer.name],
        blocks=lambda: [*answer.blocks, *_unknown(unknown)],
    )


def _unknown(unknown: list[str]) -> list[Block]:
    return [Heading("Not known"), Lines(unknown)] if unknown else []


def _not_found(reader: "Reader", kind: str, name: str, hint: str) -> CommandError:
    text = f"{kind} {name} does not exist in namespace {reader.namespace}; {hint}"
    return CommandError(ExitCode.NOT_FOUND, text)


# -- one of each kind


def _pod(reader: "Reader", name: str, now: datetime) -> Answer:
    from policies.explanation import PodFacts, explain_pod
    from policies.selection import governing_policy
    from reconciler.explanation import pod_blocks
    from schemas.node_facts import AGENT_LOST_S
    from statemachine.restore import running_restores

    cluster = reader.cluster
    asked, policies, events = reader.pod(name), reader.policies(), reader.events(name)
    pod = asked.result()
    told = cluster.if_allowed(events, "Events") or []
    if pod is None:
        return _gone_pod(reader, name, told, now)
    policy = governing_policy(pod, policies.result())
    storage = reader.storage(policy.storage_config_name) if policy else None
    snapshots = reader.snapshots(policy.metadata.name) if policy else None
    pinned = reader.snapshot(pod.pinned_snapshot) if pod.pinned_snapshot else None
    runtime_class = reader.runtime_class(pod.runtime_class)
    nodes = reader.nodes() if not pod.node_name else None
    here = reader.node(pod.node_name) if pod.node_name else None
    saved = {s.metadata.name: s for s in (snapshots.result() if snapshots else ())}
    if pinned and (found := pinned.result()):
        saved[found.metadata.name] = found
    is_silent = False
    if here is not None:
        is_allowed, node = cluster.asked(here, "what the Pod's node published")
        silent_s = now.timestamp() - (node.renewed_at_s if node else 0.0)
        is_silent = is_allowed and silent_s > AGENT_LOST_S
    else:
        node = _any_node(cluster.if_allowed(nodes, "what nodes published") if nodes else None)
    explained = explain_pod(
        PodFacts(
            pod=pod,
            policies=policies.result(),
            storage=_storage(cluster, storage, policy),
            node=node.compatibility if node and node.compatibility.runsc_version else None,
            node_name=node.node if node else "",
            agent_is_silent=is_silent,
            snapshots=[replace(s, restores=running_restores(s, now)) for s in saved.values()],
            is_gvisor=cluster.if_allowed(runtime_class, "RuntimeClasses"),
            events=told,
        )
    )
    return Answer(explained, f"pod/{name}", pod_blocks(explained, now))


def _storage(
    cluster: Cluster, asked: "Future[StorageConfig | None] | None", policy: "Policy | None"
) -> "StorageConfig | None":
    """Return a policy's storage config; one that may not be read is taken as good."""
    from schemas.metadata import Metadata
    from schemas.storage_config import Location, StorageConfig

    if asked is None or policy is None:
        return None
    is_allowed, found = cluster.asked(asked, "the storage config")
    if not is_allowed:
        return StorageConfig(Metadata(name=policy.storage_config_name), Location("?"))
    return found


def _any_node(nodes: "list[NodeFacts] | None") -> "NodeFacts | None":
    """Return the node to judge on for a Pod that has none yet: the one that was seen last."""
    return max(nodes or (), key=lambda n: n.renewed_at_s, default=None)


def _gone_pod(reader: "Reader", name: str, told: list[Any], now: datetime) -> Answer:
    from policies.explanation import explain_gone_pod
    from reconciler.explanation import gone_pod_blocks

    snapshots = reader.snapshots().result()
    namespace = str(reader.namespace)
    explained = explain_gone_pod(namespace, name, snapshots=snapshots, events=told)
    if explained is None:
        raise _not_found(
            reader,
            "Pod",
            name,
            "and neither an Event nor a snapshot remembers it; `kubectl get pods "
            f"-n {namespace}` lists those that exist",
        )
    return Answer(explained, f"pod/{name}", gone_pod_blocks(explained, now))


def _snapshot(reader: "Reader", name: str, now: datetime) -> Answer:
    from policies.obsolescence import node_classes
    from policies.snapshot_explanation import explain_snapshot
    from reconciler.commands.keeping import Keeping
    from reconciler.explanation import snapshot_blocks
    from statemachine.restore import running_restores

    cluster, nodes, keeping = reader.cluster, reader.nodes(), Keeping(reader)
    snapshot = snapshot_named(cluster, name)
    wanted, siblings = reader.policy(snapshot.policy_name), reader.snapshots(snapshot.policy_name)
    policy = wanted.result()
    plan = keeping.plan(policy, siblings.result()) if policy else []
    published = cluster.if_allowed(nodes, "what nodes published")
    goes = next((d for d in plan if d.snapshot.metadata.name == snapshot.metadata.name), None)
    explained = explain_snapshot(
        snapshot,
        policy=policy,
        classes=node_classes(published or ()),
        restoring=tuple(running_restores(snapshot, now).values()),
        retention=f"{_due(goes, now)}: {goes.reason}" if goes else "until somebody deletes it",
    )
    name = snapshot.metadata.name
    return Answer(explained, f"{SNAPSHOT_KIND}/{name}", snapshot_blocks(explained, now))


def _policy(reader: "Reader", name: str, now: datetime) -> Answer:
    from policies.policy_explanation import Departure, explain_policy
    from policies.policy_review import PolicyFacts, invitations
    from reconciler.commands.keeping import Keeping
    from reconciler.explanation import policy_blocks

    cluster, keeping = reader.cluster, Keeping(reader)
    policies, snapshots = reader.policies(), reader.snapshots(name)
    nodes, classes = reader.nodes(), reader.classes()
    policy = next((p for p in policies.result() if p.metadata.name == name), None)
    if policy is None:
        hint = f"`kubectl get psp -n {reader.namespace}` lists those that exist"
        raise _not_found(reader, "PodSnapshotPolicy", name, hint)
    storage = reader.storage(policy.storage_config_name)
    published = cluster.if_allowed(nodes, "what nodes published")
    known = cluster.if_allowed(classes, "RuntimeClasses")
    pods = keeping.pods()
    facts = PolicyFacts(
        policy=policy,
        storage=_storage(cluster, storage, policy),
        pods=pods,
        policies=policies.result(),
        snapshots=snapshots.result(),
        gvisor_classes={p.runtime_class for p in pods}
        if known is None
        else {runtime_class for runtime_class, is_gvisor in known.items() if is_gvisor},
        nodes={n.node: n.compatibility for n in published or () if n.compatibility.runsc_version},
    )
    explained = explain_policy(
        facts,
        now=now,
        deletes_next=[
            Departure(d.snapshot.metadata.name, _due(d, now), d.reason)
            for d in keeping.plan(policy, facts.snapshots)
        ],
        warnings=invitations(policy),
    )
    return Answer(explained, f"podsnapshotpolicy{_GROUP}/{name}", policy_blocks(explained, now))


def _trigger(reader: "Reader", name: str, now: datetime) -> Answer:
    from policies.capturing import TriggerInput
    from policies.identity import manual_snapshot_name
    from policies.policy_explanation import explain_trigger
    from policies.selection import governing_policy
    from reconciler.explanation import trigger_blocks

    cluster, policies, classes = reader.cluster, reader.policies(), reader.classes()
    trigger = reader.trigger(name).result()
    if trigger is None:
        hint = f"`kubectl get psmt -n {reader.namespace}` lists those that exist"
        raise _not_found(reader, "PodSnapshotManualTrigger", name, hint)
    snapshot_name = trigger.snapshot_name or manual_snapshot_name(trigger.metadata.uid)
    target, snapshot = reader.pod(trigger.target_pod or "-"), reader.snapshot(snapshot_name)
    pod = target.result() if trigger.target_pod else None
    policy = governing_policy(pod, policies.result()) if pod else None
    storage = reader.storage(policy.storage_config_name) if policy else None
    here = reader.node(pod.node_name) if pod and pod.node_name else None
    node = cluster.if_allowed(here, "what the Pod's node published") if here else None
    known = cluster.if_allowed(classes, "RuntimeClasses")
    explained = explain_trigger(
        trigger,
        given=TriggerInput(
            target=trigger.target_pod,
            pod=pod,
            policy=policy,
            classes=({pod.runtime_class: True} if pod else {}) if known is None else known,
            node=node.compatibility if node else None,
        ),
        storage=_storage(cluster, storage, policy),
        snapshot=snapshot.result(),
        snapshot_name=snapshot_name,
    )
    kind = f"podsnapshotmanualtrigger{_GROUP}"
    return Answer(explained, f"{kind}/{name}", trigger_blocks(explained, now))


def _due(found: "Doomed", now: datetime) -> str:
    return "is due now" if found.due_at <= now else f"until {found.due_at:%Y-%m-%dT%H:%M:%SZ}"


_EXPLAINED: Final[dict[str, Callable[["Reader", str, datetime], Answer]]] = {
    "pod": _pod,
    "snapshot": _snapshot,
    "policy": _policy,
    "trigger": _trigger,
}
