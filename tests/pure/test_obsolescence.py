# SPDX-License-Identifier: Apache-2.0
"""Who might still want a snapshot, which node could run it, and for how long nobody and none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_objects import NODE, capture_of, pinned, pod, policy, snapshot

from policies.distill import distill
from policies.obsolescence import (
    SILENT_S,
    Standing,
    Template,
    demand,
    node_classes,
    standing_of,
)
from schemas.names import PS_NAME_ANNOTATION
from schemas.node_facts import NodeFacts
from schemas.pod import MIRROR_ANNOTATION, Pod
from schemas.policy import Policy
from schemas.snapshot import Compatibility, ControlRecord, Snapshot, SpecIdentity

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
MAIN = {"name": "main", "image": "registry.example/web:1"}
NEW = {"name": "main", "image": "registry.example/web:2"}
TOKEN = {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/x"}
TOKEN_VOLUME = {"name": "kube-api-access-x7k2p", "projected": {"sources": []}}
ALIVE = [NodeFacts("node-1", NODE, NOW.timestamp() - 10)]


def workload(
    container: Mapping[str, Any] = MAIN,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    spec: Mapping[str, Any] | None = None,
    template_spec: Mapping[str, Any] | None = None,
    **changes: Any,  # noqa: ANN401 - metadata and status
) -> Template:
    """Return a Deployment, or what the other kinds have alike."""
    template = {
        "metadata": {"labels": labels or {"app": "web"}, "annotations": annotations or {}},
        "spec": {"runtimeClassName": "gvisor", "containers": [container], **(template_spec or {})},
    }
    metadata = {"name": "web", "namespace": "shop", **changes.pop("metadata", {})}
    return Template.parse(
        {"metadata": metadata, "spec": {"template": template, **(spec or {})}, **changes}
    )


def owner(kind: str) -> dict[str, Any]:
    """Return the metadata of what another object controls."""
    return {"metadata": {"ownerReferences": [{"kind": kind, "name": "x", "controller": True}]}}


def judged(
    given: Snapshot,
    pods: Sequence[Pod] = (),
    templates: Sequence[Template] = (),
    *,
    under: Policy | None = None,
    nodes: Sequence[NodeFacts] = ALIVE,
    now: datetime = NOW,
) -> Standing:
    """Judge a snapshot of a Pod with image 1."""
    governing = under or policy()
    wanted = demand(governing, pods, templates)
    return standing_of(given, governing, wanted, node_classes(nodes), now)


def saved_from(source: Pod, **changes: Any) -> Snapshot:  # noqa: ANN401 - fields of a Snapshot
    """Return the snapshot of a Pod."""
    return replace(snapshot(capture=capture_of(source)), **changes)


def as_admitted(**spec: Any) -> Pod:  # noqa: ANN401 - fields of a PodSpec
    """Return a Pod with what admission puts into every one and a mesh into some."""
    mesh = {"name": "proxy", "image": "mesh:1", "volumeMounts": [TOKEN]}
    main = {**MAIN, "volumeMounts": [*spec.pop("mounts", ()), TOKEN, {**TOKEN, "name": "mesh"}]}
    volumes = [*spec.pop("volumes", ()), TOKEN_VOLUME, {"name": "mesh", "emptyDir": {}}]
    return pod(containers=[mesh, main], volumes=volumes, **spec)


DATA = {"name": "data", "mountPath": "/data"}
CLAIM = {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}
OLD = pod()
OTHER = pod("web-9", containers=[NEW])
PIN = snapshot().metadata.name

# what: (the saved Pod, live Pods, templates)
WANTED: dict[str, tuple[Pod, list[Pod], list[Template]]] = {
    "a live Pod has the spec": (OLD, [pod("web-1"), OTHER], []),
    "a template has the spec, and no Pod lives": (OLD, [], [workload()]),
    "the template is at zero, and another workload lives": (OLD, [OTHER], [workload()]),
    "the template lacks what admission adds": (as_admitted(), [OTHER], [workload()]),
    "admission sets fields of the Pod and of a container": (
        pod(
            containers=[{**MAIN, "securityContext": {"runAsUser": 7}}],
            securityContext={"fsGroup": 1337},
        ),
        [],
        [workload()],
    ),
    "the API's defaults stand in the template": (
        OLD,
        [],
        [workload({**MAIN, "terminationMessagePolicy": "File"})],
    ),
    "a StatefulSet adds its claims": (
        as_admitted(mounts=[DATA], volumes=[CLAIM]),
        [],
        [
            workload(
                {**MAIN, "volumeMounts": [DATA]},
                spec={"volumeClaimTemplates": [{"metadata": {"name": "data"}}]},
            )
        ],
    ),
    "a Job numbers its Pods": (
        pod(labels={"app": "web", "batch.kubernetes.io/job-completion-index": "3"}),
        [],
        [workload()],
    ),
    "a CronJob's template is one deeper": (
        OLD,
        [],
        [
            Template.parse(
                {
                    "metadata": {"name": "web", "namespace": "shop"},
                    "spec": {
                        "jobTemplate": {
                            "spec": {
                                "template": {
                                    "metadata": {"labels": {"app": "web"}},
                                    "spec": {"runtimeClassName": "gvisor", "containers": [MAIN]},
                                }
                            }
                        }
                    },
                }
            )
        ],
    ),
    "a Job that has not failed has it": (
        OLD,
        [OTHER],
        [workload(status={"conditions": [{"type": "Failed", "status": "False"}]})],
    ),
    "a ReplicaSet of a kind that is not watched": (OLD, [OTHER], [workload(**owner("Rollout"))]),
    "a live Pod pins it": (OLD, [pinned(PIN, containers=[NEW])], []),
    "a template pins it": (
        OLD,
        [OTHER],
        [workload(NEW, annotations={PS_NAME_ANNOTATION: PIN})],
    ),
    "nothing took its place": (OLD, [], []),
    "only Pods of another namespace live": (OLD, [pod(namespace="x", containers=[NEW])], []),
    "only Pods that no policy selects live": (OLD, [pod(labels={}, containers=[NEW])], []),
    "only Pods that are over are there": (OLD, [replace(OTHER, phase="Succeeded")], []),
    "only static Pods are there": (
        OLD,
        [pod(annotations={MIRROR_ANNOTATION: "x"}, containers=[NEW])],
        [],
    ),
}

# what: (live Pods, templates, in what the closest differs)
UNWANTED: dict[str, tuple[list[Pod], list[Template], str]] = {
    "live Pods have another image": ([OTHER], [], "spec.containers[main].image"),
    "a template has another image": ([], [workload(NEW)], "spec.containers[main].image"),
    "the closest one is named": (
        [pod(containers=[{**NEW, "command": ["x"], "args": ["y"]}]), OTHER],
        [workload({**NEW, "command": ["x"]})],
        "spec.containers[main].image;",
    ),
    "a Pod has what the saved one had not": (
        [pod(hostPID=True)],
        [],
        "spec.hostPID",
    ),
    "a template asks for another mount": (
        [],
        [
            workload(
                {**MAIN, "volumeMounts": [DATA]},
                template_spec={"volumes": [{"name": "data", "emptyDir": {}}]},
            )
        ],
        "spec.containers[main].volumeMounts, spec.volumes[data]",
    ),
    "the Deployment that has it is being deleted": (
        [OTHER],
        [workload(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})],
        "image",
    ),
    "only an old ReplicaSet of a Deployment has it": (
        [OTHER],
        [workload(**owner("Deployment"))],
        "image",
    ),
    "only a Job that is over has it": (
        [OTHER],
        [workload(status={"conditions": [{"type": "Complete", "status": "True"}]})],
        "image",
    ),
    "the pin names another": ([pinned("another", containers=[NEW])], [], "image"),
}


@pytest.mark.parametrize("what", WANTED)
def test_a_snapshot_that_somebody_might_want_has_nothing_recorded(what: str) -> None:
    """Also one that waits for its first restore behind a workload at zero."""
    source, pods, templates = WANTED[what]
    assert judged(saved_from(source), pods, templates) == Standing(look_again_s=SILENT_S)


@pytest.mark.parametrize("what", UNWANTED)
def test_a_snapshot_that_nobody_wants_is_superseded_after_an_hour(what: str) -> None:
    """From when the leader first saw it; the sentence says in what the others differ."""
    pods, templates, paths = UNWANTED[what]
    found = judged(saved_from(OLD), pods, templates)
    assert found == Standing("2026-01-05T12:00:00.000000Z", look_again_s=3600.0)
    record = ControlRecord(unwanted_since=found.unwanted_since)
    later = judged(
        saved_from(OLD, control=record), pods, templates, now=NOW + timedelta(hours=1), nodes=()
    )
    assert later.unwanted_since == found.unwanted_since
    assert later.superseded.startswith(
        "no Pod or template that policy web selects has had its spec since 2026-01-05T12:00:00Z: "
        "they differ in "
    )
    assert paths in later.superseded
    assert judged(saved_from(OLD, control=record), [OLD]).unwanted_since == ""


def test_each_group_is_judged_by_its_own() -> None:
    """A sandbox that sleeps is not superseded by those that are awake."""
    grouped = policy(labels=("user",))
    mine = saved_from(OLD)
    mine = replace(mine, metadata=replace(mine.metadata, labels={"user": "a"}))
    awake = [pod(labels={"app": "web", "user": "b"}, containers=[NEW])]
    assert judged(mine, awake, under=grouped).unwanted_since == ""
    awake.append(pod(labels={"app": "web", "user": "a"}, containers=[NEW]))
    assert judged(mine, awake, under=grouped).unwanted_since != ""


def test_what_only_strictness_adds_is_left_out() -> None:
    """The controller sees no contents, so they can say nothing here."""
    source = capture_of(OLD)
    fields = {**source.identity.fields, "spec.volumes[keys].content": '"scrypt:1"'}
    fields["spec.containers[main].env"] = '"scrypt:2"'
    strict = replace(source, identity=SpecIdentity("h", fields))
    given = replace(snapshot(), capture=strict)
    assert judged(given, [OLD]).unwanted_since == ""
    assert judged(given, [], [workload()]).unwanted_since == ""


def test_a_time_that_lies_ahead_is_not_believed() -> None:
    """The clock was set back; the hour begins now."""
    record = ControlRecord(unwanted_since="2026-02-01T00:00:00.000000Z")
    found = judged(saved_from(OLD, control=record), [OTHER])
    assert found.unwanted_since == "2026-01-05T12:00:00.000000Z"


# -- nodes

ANOTHER = replace(NODE, runsc_version="release-2", runsc_digest="sha256:bb")


def node(compatibility: Compatibility, *, seen_s: float, name: str = "node-1") -> NodeFacts:
    """Return a node whose agent gave its last sign of life some time ago."""
    return NodeFacts(name, compatibility, NOW.timestamp() - seen_s)


UNRUNNABLE: dict[str, tuple[list[NodeFacts], str]] = {
    "its nodes were upgraded": (
        [node(ANOTHER, seen_s=1)],
        "; of the most similar node, node-1: the runsc version is release-2 on this node, saved "
        "with release-1, the runsc build is sha256:bb on this node, saved with sha256:aa",
    ),
    "its nodes fell silent": (
        [node(NODE, seen_s=SILENT_S), node(ANOTHER, seen_s=1, name="node-2")],
        "; the last that could, node-1, gave no sign of life since",
    ),
    "there are no nodes": ([], ""),
}


@pytest.mark.parametrize("what", UNRUNNABLE)
def test_a_snapshot_that_no_node_can_run_is_superseded_after_a_day(what: str) -> None:
    """A pool that is away over night brings its snapshots back with it."""
    nodes, cause = UNRUNNABLE[what]
    found = judged(saved_from(OLD), [OLD], nodes=nodes)
    assert found == Standing("", "2026-01-05T12:00:00.000000Z", look_again_s=86400.0)
    record = ControlRecord(unrunnable_since=found.unrunnable_since)
    given = saved_from(OLD, control=record)
    text = "no node of the last 24 hours can run it; it comes back with one that can"
    later = NOW + timedelta(days=1)
    assert judged(given, [OLD], nodes=nodes, now=later).superseded == text + cause
    back = [*nodes, NodeFacts("node-3", NODE, later.timestamp())]
    assert judged(given, [OLD], nodes=back, now=later) == Standing(look_again_s=SILENT_S)


def test_files_alone_are_wanted_by_any_spec_and_run_on_any_node() -> None:
    """Only their policy can make them obsolete."""
    given = replace(snapshot(), capture=replace(capture_of(OLD), rootfs_only=True))
    assert judged(given, [OTHER], nodes=()) == Standing()


def test_a_save_without_a_record_is_not_judged() -> None:
    """Nothing is known of it, so nothing speaks against it."""
    given = replace(snapshot(), capture=replace(capture_of(OLD), identity=SpecIdentity()))
    assert judged(given, [OTHER]).unwanted_since == ""


def test_equal_pods_are_one_wish_and_equal_nodes_one_kind() -> None:
    """So a judgement costs as much for a thousand of them as for one."""
    pods = [pod(f"web-{n}") for n in range(9)]
    found = demand(policy(), pods, [])
    assert [w.identity.hash for w in found.wishes.values()] == [distill(OLD).hash]
    assert found == demand(policy(), pods[1:], [])
    facts = [node(NODE, seen_s=n, name=f"node-{n}") for n in range(9)]
    (kind,) = node_classes([*facts, NodeFacts("controller", Compatibility(), NOW.timestamp())])
    assert (len(kind.nodes), kind.seen_at_s) == (9, NOW.timestamp())
