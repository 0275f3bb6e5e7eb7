# SPDX-License-Identifier: Apache-2.0
"""What a tree of manifests would change: judged as the agent judges, before anything is applied."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from api_objects import NODE, capture_of, pod, policy, snapshot

from backends.kube.errors import from_status
from policies.distill import distill
from policies.expected_pod import admitted_pod, manifest_of
from policies.explanation import PodFacts, explain_pod
from policies.obsolescence import NodeClass, standing_of
from policies.planned_snapshots import Wanted
from policies.planned_starts import Forecast, Outcome, Side, Workload
from policies.planning import POLICY_FIELDS, Change, Plan, WorkloadPlan, plan
from policies.verdict import Reason
from reconciler.commands.admission import is_verdict
from reconciler.commands.output import lines, plain
from reconciler.manifest_files import ManifestFile
from reconciler.plan_presentation import Told, blocks, document, markdown, summary
from reconciler.planned_manifests import read_manifests
from reconciler.planned_sides import Standing, sides, standing
from schemas.conditions import Condition
from schemas.names import (
    API_VERSION,
    NODE_FACTS_ANNOTATION,
    OBSOLETE_TTL_ANNOTATION,
    PS_NAME_ANNOTATION,
    READY,
)
from schemas.node_facts import NodeFacts
from schemas.policy import Policy
from schemas.snapshot import ControlRecord, Snapshot, StoryEntry

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
NAME = "11111111-1111-5111-8111-111111111111"
NODES = (NodeClass(NODE, ("node-1",)),)
OBSOLETE_TTL = {OBSOLETE_TTL_ANNOTATION: "2h"}
DIGEST = "registry.example/web@sha256:" + "0" * 64
GROUPS = {"": "v1", "apps": "apps/v1", "batch": "batch/v1"}


def template(
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    *,
    image: str = "registry.example/web:1",
    container: Mapping[str, Any] | None = None,
    **spec: Any,  # noqa: ANN401 - fields of a PodSpec
) -> dict[str, Any]:
    """Return what a workload makes Pods like ``api_objects.pod`` from."""
    main = {"name": "main", "image": image, **(container or {})}
    return {
        "metadata": {"labels": {"app": "web", **(labels or {})}, "annotations": annotations or {}},
        "spec": {"runtimeClassName": "gvisor", "containers": [main], **spec},
    }


def workload(
    kind: str = "Deployment",
    group: str = "apps",
    name: str = "web",
    **of: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return a workload of any kind; ``of`` are those of ``template``."""
    obj = {"apiVersion": GROUPS[group], "kind": kind, "metadata": {"name": name}}
    made = template(**of)
    if kind == "Pod":
        return {**obj, **made, "metadata": {**made["metadata"], "name": name}}
    spec = {"template": made}
    return {**obj, "spec": {"jobTemplate": {"spec": spec}} if kind == "CronJob" else spec}


def rule(name: str = "web", **spec: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of its spec
    """Return a policy's manifest, the same as ``api_objects.policy``."""
    base = {
        "selector": {"matchLabels": {"app": "web"}},
        "storageConfigName": "store",
        "triggerConfig": {"type": "manual"},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "PodSnapshotPolicy",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


def files(*objects: dict[str, Any]) -> list[ManifestFile]:
    """Return a tree with one file; JSON is YAML."""
    return [ManifestFile("tree.yaml", "\n---\n".join(map(json.dumps, objects)).encode())]


def cluster(
    *snapshots: Snapshot,
    policies: tuple[Policy, ...] = (policy(),),
    **more: Any,  # noqa: ANN401
) -> Standing:
    """Return a cluster with one kind of node, and the workloads of ``standing``."""
    standing = more.pop("standing", ())
    found = read_manifests(files(*standing), "shop").workloads
    return Standing(
        policies=policies,
        snapshots=snapshots,
        runtime_classes={"gvisor": True, "runc": False},
        workloads={key: replace(one, place="") for key, one in found.items()},
        **{"classes": NODES, **more},
    )


def planned(
    there: Standing, *tree: dict[str, Any], base: tuple[dict[str, Any], ...] | None = None
) -> Plan:
    """Plan a tree of namespace ``shop``; admission adds nothing."""
    older = None if base is None else read_manifests(files(*base), "shop")
    manifests = read_manifests(files(*tree), "shop")
    assert manifests.errors == []
    return plan(*sides(manifests, older, there, NOW, list))


def only(of: Plan) -> WorkloadPlan:
    """Return the one workload of a plan."""
    (found,) = of.workloads
    return found


# -- how the next Pod starts


@pytest.mark.parametrize(
    ("of", "outcome", "cause", "paths"),
    [
        ({}, Outcome.RESTORED, "", []),
        ({"container": {"env": [{"name": "A", "value": "1"}]}}, Outcome.RESTORED, "", []),
        (
            {"image": "registry.example/web:2"},
            Outcome.COLD,
            Reason.SPEC_DIFFERS,
            ["spec.containers[main].image"],
        ),
        (
            {"container": {"command": ["serve"]}},
            Outcome.COLD,
            Reason.SPEC_DIFFERS,
            ["spec.containers[main].command"],
        ),
        (
            {
                "container": {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
            Outcome.COLD,
            Reason.SPEC_DIFFERS,
            ["spec.containers[main].volumeMounts", "spec.volumes[data]"],
        ),
        ({"runtimeClassName": "runc"}, Outcome.UNGOVERNED, Reason.NOT_IN_GVISOR, []),
        ({"labels": {"app": "other"}}, Outcome.UNGOVERNED, Reason.NOT_GOVERNED, []),
        ({"annotations": {PS_NAME_ANNOTATION: NAME}}, Outcome.RESTORED, "", []),
        ({"annotations": {PS_NAME_ANNOTATION: ""}}, Outcome.COLD, Reason.PINNED_TO_NONE, []),
        ({"annotations": {PS_NAME_ANNOTATION: "gone"}}, Outcome.COLD, Reason.PIN_MISSING, []),
    ],
    ids=[
        "the same",
        "another environment",
        "another image",
        "another command",
        "another mount",
        "not in gVisor",
        "not selected",
        "a pin",
        "a pin on none",
        "a pin on nothing",
    ],
)
def test_a_template_is_judged_as_its_pods_will_be(
    of: dict[str, Any], outcome: Outcome, cause: str, paths: list[str]
) -> None:
    """With the field that is the reason, and both values of it."""
    told = only(planned(cluster(snapshot()), workload(**of))).after
    assert told is not None
    assert told.outcome is outcome
    (start,) = told.starts
    assert (start.cause, [d.path for d in start.differences]) == (cause, paths)
    assert start.restored_from == (NAME if outcome is Outcome.RESTORED else "")


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("Pod", ""),
        ("ReplicationController", ""),
        ("Deployment", "apps"),
        ("StatefulSet", "apps"),
        ("DaemonSet", "apps"),
        ("ReplicaSet", "apps"),
        ("Job", "batch"),
        ("CronJob", "batch"),
    ],
)
def test_every_kind_that_makes_pods_is_planned(kind: str, group: str) -> None:
    """Restored from what a Pod of the same template left, and cold with another image."""
    there = cluster(snapshot())
    same = only(planned(there, workload(kind, group)))
    assert (same.kind, same.place, same.after and same.after.outcome) == (
        kind,
        "tree.yaml:1:1",
        Outcome.RESTORED,
    )
    other = only(planned(there, workload(kind, group, image="registry.example/web:2")))
    assert other.after is not None
    assert other.after.outcome is Outcome.COLD


def test_a_stateful_set_is_judged_with_the_claims_of_its_first_pod() -> None:
    """Each Pod mounts its own, so each is another identity, which is told."""
    mounted = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}}
    containers = [{"name": "main", "image": "registry.example/web:1", **mounted}]
    saved = snapshot(capture=capture_of(pod(volumes=[claim], containers=containers)))
    made = workload("StatefulSet", container=mounted)
    made["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "data"}}]
    told = only(planned(cluster(saved), made))
    assert told.after is not None
    assert told.after.outcome is Outcome.RESTORED
    assert "first Pod" in told.notes[0]


def test_nodes_of_several_kinds_get_a_verdict_each() -> None:
    """Those that can run the same are told once."""
    other = NodeClass(replace(NODE, platform="kvm"), ("node-2", "node-3"))
    there = cluster(snapshot(), classes=(*NODES, other))
    told = only(planned(there, workload())).after
    assert told is not None
    assert told.outcome is Outcome.BY_NODE
    assert [(s.nodes, s.cause) for s in told.starts] == [
        (("node-1",), ""),
        (("node-2", "node-3"), Reason.NODE_INCOMPATIBLE),
    ]
    unlike = NodeClass(replace(NODE, machine_series="n3"), ("node-4",))
    both = cluster(classes=(*NODES, unlike))
    assert [s.nodes for s in _starts(planned(both, workload()))] == [("node-1", "node-4")]


def _starts(of: Plan) -> Any:  # noqa: ANN401 - a tuple of starts
    told = only(of).after
    return told.starts if told else ()


@pytest.mark.parametrize(
    ("image", "annotations", "unknown"),
    [
        ("registry.example/web:1", {}, ("tag: container main: registry.example/web:1",)),
        (DIGEST, {}, ()),
        (DIGEST, {"podsnap.dev/strict-identity": "secrets"}, ("content: volume key",)),
    ],
    ids=["a tag", "a digest", "a Secret that counts"],
)
def test_what_only_a_node_will_know_is_told_as_unknown(
    image: str, annotations: dict[str, str], unknown: tuple[str, ...]
) -> None:
    """A tag may name another image by then, a digest cannot."""
    spec: dict[str, Any] = {"volumes": [{"name": "key", "secret": {"secretName": "key"}}]}
    saved = pod(containers=[{"name": "main", "image": image}], **spec)
    strict = Policy.parse(
        {
            **rule(),
            "metadata": {"name": "web", "namespace": "shop", "annotations": annotations},
        }
    )
    contents = {"key": "0"} if annotations else {}
    capture = replace(capture_of(saved), identity=distill(saved, strict, contents))
    there = cluster(snapshot(capture=capture), policies=(strict,))
    (start,) = _starts(planned(there, workload(image=image, **spec)))
    assert (start.restored_from, start.unknown) == (NAME, unknown)


def test_files_alone_fit_other_containers_whose_images_nobody_compares() -> None:
    """Of those that were saved an image of another name may still be the same."""
    files_only = policy(snapshotScope="rootfs-only")
    saved = snapshot(capture=replace(capture_of(pod()), rootfs_only=True))
    containers = [{"name": "main", "image": "moved:1"}, {"name": "side", "image": "side:1"}]
    there = cluster(saved, policies=(files_only,))
    (start,) = _starts(planned(there, workload(containers=containers)))
    assert (start.restored_from, start.unknown) == (NAME, ("tag: container main: moved:1",))


@pytest.mark.parametrize(
    ("runtime_class", "outcome"), [("gvisor", Outcome.RESTORED), (None, Outcome.UNGOVERNED)]
)
def test_without_runtime_classes_any_name_is_taken_for_gvisor(
    runtime_class: str | None, outcome: Outcome
) -> None:
    """But a Pod that names none does not run in it."""
    there = replace(cluster(snapshot()), runtime_classes=None)
    told = only(planned(there, workload(runtimeClassName=runtime_class))).after
    assert told is not None
    assert told.outcome is outcome


def test_of_the_environment_only_names_are_told() -> None:
    """A difference forbids nothing, and a value is nobody's business."""
    capture = replace(capture_of(pod()), env_marks={"main": {"TOKEN": "0000"}})
    env = {"env": [{"name": "TOKEN", "value": "s3cret"}]}
    made = planned(cluster(snapshot(capture=capture)), workload(container=env))
    assert _starts(made)[0].environment == ("container main: TOKEN differs",)
    told = Told("tree", "it", [], [], made)
    for text in (json.dumps(plain(document(told))), *lines(blocks(told)), *markdown(told)):
        assert "s3cret" not in text


@pytest.mark.parametrize("scope", ["whole-pod", "rootfs-only"])
def test_not_judging_every_snapshot_changes_no_verdict(scope: str) -> None:
    """Of all mixtures of two: the same choice, the same reason, the same snapshot awaited."""
    grouped = policy(labels=("tenant",), snapshotScope=scope)
    tenant = pod(labels={"app": "web", "tenant": "a"})
    own = capture_of(tenant)
    other = capture_of(pod(containers=[{"name": "main", "image": "registry.example/web:2"}]))
    kinds: list[dict[str, Any]] = [
        {"capture": own},
        {"capture": other},
        {"capture": own, "labels": {"tenant": "b"}},
        {"capture": own, "is_ready": False},
        {"capture": other, "is_ready": False, "damage": "torn"},
        {"capture": own, "damage": "torn"},
        {"capture": replace(other, rootfs_only=True)},
        {"capture": replace(own, compatibility=replace(NODE, platform="kvm"))},
    ]
    for mixture in itertools.product(kinds, repeat=2):
        snapshots = []
        for number, kind in enumerate(mixture):
            at = f"2026-01-01T10:00:0{number}.000000Z"
            capture = replace(kind["capture"], checkpointed_at=at)
            more = {"labels": {"tenant": "a"}, **kind, "capture": capture}
            snapshots.append(snapshot(f"s-{number}", **more))
        facts = PodFacts(tenant, [grouped], None, NODE, snapshots=snapshots)
        all_judged = explain_pod(facts)
        side = Side(policies=(grouped,), snapshots=tuple(snapshots))
        (start,) = Forecast(side, NODES, None).of(Workload("Pod", tenant)).starts
        assert (start.restored_from, start.cause, start.why, start.awaited) == (
            all_judged.chosen,
            all_judged.cause,
            all_judged.why_not,
            "" if all_judged.chosen else all_judged.awaited,
        )


# -- what changes


def test_a_tree_that_stands_already_changes_nothing() -> None:
    """Also where the API server has filled in defaults."""
    filled = workload(container={"terminationMessagePolicy": "File"}, dnsPolicy="ClusterFirst")
    there = cluster(snapshot(), standing=[filled])
    made = planned(there, workload(), rule())
    assert not made.has_changes
    assert summary(made) == "nothing changes: 1 workload governed, 1 restored"


def test_what_only_strict_policies_and_matching_see_is_a_change() -> None:
    """The distilled spec leaves out the environment, and which init container is a sidecar."""
    strict = {"podsnap.dev/strict-identity": "env"}
    of = Policy.parse(
        {**rule(), "metadata": {"name": "web", "namespace": "shop", "annotations": strict}}
    )
    old = {"container": {"env": [{"name": "A", "value": "1"}]}}
    saved = pod(containers=template(**old)["spec"]["containers"])
    capture = replace(capture_of(saved), identity=distill(saved, of))
    there = cluster(snapshot(capture=capture), policies=(of,), standing=[workload(**old)])
    assert only(planned(there, workload(**old))).change is Change.NONE
    new = workload(container={"env": [{"name": "A", "value": "2"}]})
    assert only(planned(there, new)).change is Change.COLD
    init = {"name": "init", "image": "init:1"}
    saved = pod(initContainers=[init])
    there = cluster(snapshot(capture=capture_of(saved)), standing=[workload(initContainers=[init])])
    sidecar = workload(initContainers=[{**init, "restartPolicy": "Always"}])
    assert only(planned(there, sidecar)).change is Change.COLD


def test_a_finished_job_that_is_in_the_tree_wants_nothing_anew() -> None:
    """The tree does not say that it is finished; what stands does."""
    away = Condition(READY, "False", "Obsolete", "nobody wants it")
    record = ControlRecord((), unwanted_since="2026-01-01T10:00:00.000000Z")
    saved = replace(snapshot(), conditions={READY: away}, control=record)
    job = workload("Job", "batch")
    done = {**job, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    there = cluster(saved, standing=[done, workload(name="other", image="other:2")])
    assert planned(there, job).snapshots == ()


def test_comparing_with_few_templates_judges_as_with_all() -> None:
    """Those whose images a snapshot does not have cannot want it."""
    images = [f"registry.example/web:{number}" for number in range(4)]
    templates = [
        workload(name=f"web-{n}", image=image, container={"args": [str(n // 2)]})
        for n, image in enumerate(images)
    ]
    there = cluster(standing=templates)
    before, _, around = sides(read_manifests([], "shop"), None, there, NOW, list)
    wanted = Wanted(before, around)
    judged = []
    for image, args in itertools.product([*images, "other:1"], ["0", "1"]):
        saved = pod(containers=[{"name": "main", "image": image, "args": [args]}])
        one = snapshot(capture=capture_of(saved))
        every = standing_of(one, policy(), wanted.demand(policy()), NODES, NOW)
        assert wanted.standing(one)[0] is bool(every.unwanted_since)
        judged.append(bool(every.unwanted_since))
    assert judged.count(False) == len(images)


def test_jobs_of_one_generated_name_are_two() -> None:
    """The API server gives each a name of its own."""
    job = workload("Job", "batch")
    job["metadata"] = {"generateName": "load-"}
    other = json.loads(json.dumps(job).replace("web:1", "web:2"))
    assert [w.name for w in planned(cluster(), job, other).workloads] == ["load-", "load-2"]


def test_what_stands_is_judged_where_a_policy_of_the_tree_changes() -> None:
    """Shown only if something becomes of it."""
    standing = [workload(), workload(name="apart", labels={"app": "apart"})]
    there = cluster(snapshot(), standing=standing)
    assert planned(there, rule(triggerConfig={"type": "workload"})).workloads == ()
    elsewhere = rule(selector={"matchLabels": {"app": "else"}})
    assert (only(planned(there, elsewhere)).name, only(planned(there, elsewhere)).change) == (
        "web",
        Change.COLD,
    )


def test_another_image_costs_the_snapshot_and_the_first_replica() -> None:
    """The one follows from the other, and how to save anew is told."""
    made = planned(
        cluster(snapshot(), standing=[workload()]), workload(image="registry.example/web:2")
    )
    found = only(made)
    assert found.change is Change.COLD
    assert found.then.startswith("the first replica of its next rollout starts cold; to save anew")
    (lost,) = made.snapshots
    assert (lost.name, lost.comes_back, lost.wanted_by) == (NAME, False, ("Deployment web",))
    assert "they differ in spec.containers[main].image" in lost.why
    assert summary(made) == "1 workload starts cold, 1 snapshot becomes obsolete"


@pytest.mark.parametrize(
    ("kind", "group", "then"),
    [("Deployment", "apps", "the first replica of its next rollout"), ("Pod", "", "its next new")],
)
def test_only_what_rolls_out_has_a_first_replica(kind: str, group: str, then: str) -> None:
    """Others start cold when somebody makes them anew."""
    there = cluster(snapshot(), standing=[workload(kind, group)])
    assert only(planned(there, workload(kind, group, image="other:2"))).then.startswith(then)


def test_a_workload_that_leaves_the_tree_is_a_change() -> None:
    """With what it wanted: nothing took the snapshot's place, so it stays."""
    made = planned(cluster(snapshot()), base=(workload(),))
    assert (only(made).change, only(made).after, made.snapshots) == (Change.REMOVED, None, ())


def test_what_was_unwanted_before_is_no_change() -> None:
    """The controller waits an hour before it says so."""
    other = workload(image="registry.example/web:2")
    assert planned(cluster(snapshot(), standing=[other]), other).snapshots == ()
    record = ControlRecord(unwanted_since="2026-01-01T11:30:00.000000Z")
    noted = replace(snapshot(), control=record)
    assert planned(cluster(noted, knows_workloads=False), other).snapshots == ()


def test_a_snapshot_that_another_workload_wants_stays() -> None:
    """One that the tree does not mention, too."""
    standing = [workload(), workload(name="other")]
    made = planned(cluster(snapshot(), standing=standing), workload(image="registry.example/web:2"))
    assert (only(made).change, made.snapshots) == (Change.COLD, ())


def test_a_rollback_brings_a_snapshot_back() -> None:
    """Its Pods are restored again."""
    away = Condition(READY, "False", "Obsolete", "nobody wants it")
    story = (StoryEntry("Obsolete", "2026-01-01T11:00:00.000000Z"),)
    record = ControlRecord(story, unwanted_since="2026-01-01T10:00:00.000000Z")
    saved = replace(snapshot(), conditions={READY: away}, control=record)
    there = cluster(saved, standing=[workload(image="registry.example/web:2")])
    made = planned(there, workload())
    assert only(made).change is Change.RESTORED
    assert [(s.name, s.comes_back) for s in made.snapshots] == [(NAME, True)]


def test_without_known_workloads_the_snapshots_own_record_is_compared_with() -> None:
    """Then nothing is said of what a workload did before."""
    there = cluster(snapshot(), knows_workloads=False)
    made = planned(there, workload(image="registry.example/web:2"))
    assert only(made).change is Change.UNKNOWN
    assert [s.wanted_by for s in made.snapshots] == [("Deployment web",)]
    assert not planned(there, workload()).has_changes


YOUNG = policy("young", created="2026-01-01T11:00:00Z")


@pytest.mark.parametrize(
    ("there", "base", "tree", "change", "governed_by", "policies"),
    [
        (cluster(policies=()), None, [rule()], Change.GOVERNED_ANEW, "web", {"web": Change.ADDED}),
        (cluster(), None, [rule("new")], Change.NONE, "web", {"new": Change.ADDED}),
        (cluster(), [rule()], [], Change.UNGOVERNED, "", {"web": Change.REMOVED}),
        (
            cluster(policies=(policy(), YOUNG)),
            [rule()],
            [],
            Change.GOVERNED_ANEW,
            "young",
            {"web": Change.REMOVED},
        ),
        (
            cluster(policies=(policy(), YOUNG)),
            None,
            [rule("young", triggerConfig={"type": "workload"})],
            Change.NONE,
            "web",
            {"young": Change.CHANGED},
        ),
        (
            cluster(),
            None,
            [rule(selector={"matchLabels": {"app": "else"}})],
            Change.UNGOVERNED,
            "",
            {"web": Change.CHANGED},
        ),
    ],
    ids=[
        "a policy",
        "a younger one",
        "none any more",
        "the next oldest",
        "the younger one changed",
        "another selector",
    ],
)
def test_policies_of_the_tree_govern_as_they_will(
    there: Standing,
    base: list[dict[str, Any]] | None,
    tree: list[dict[str, Any]],
    change: Change,
    governed_by: str,
    policies: dict[str, Change],
) -> None:
    """A new one is the youngest, and one that stands keeps its age."""
    standing = replace(there, workloads=read_manifests(files(workload()), "shop").workloads)
    older = None if base is None else (workload(), *base)
    made = planned(standing, workload(), *tree, base=older)
    found = only(made)
    assert found.change is change
    assert (found.after and found.after.governed_by) == governed_by
    assert {p.name: p.change for p in made.policies} == policies
    assert made.has_changes


def test_a_policy_that_goes_takes_its_snapshots_and_restores_along() -> None:
    """They are obsolete at once."""
    made = planned(cluster(snapshot()), workload(), base=(workload(), rule()))
    assert only(made).change is Change.COLD
    assert [s.why.partition(";")[0] for s in made.snapshots] == ["policy web is gone"]


def test_of_several_policies_those_that_do_not_govern_are_named() -> None:
    """Because their author may wonder."""
    made = planned(cluster(policies=(policy(), YOUNG)), workload())
    told = only(made).after
    assert told is not None
    assert (told.governed_by, told.selected_by) == ("web", ("young",))


def test_a_group_label_keeps_workloads_apart() -> None:
    """A snapshot of one tenant is not the other's."""
    grouped = policy(labels=("tenant",))
    saved = snapshot(labels={"tenant": "a"}, capture=capture_of(pod(labels={"tenant": "a"})))
    there = cluster(saved, policies=(grouped,))
    a, b = (workload(name=t, labels={"tenant": t}) for t in ("a", "b"))
    made = planned(there, a, b)
    outcomes = {w.name: w.after.outcome for w in made.workloads if w.after}
    assert outcomes == {"a": Outcome.RESTORED, "b": Outcome.COLD}
    assert [d.path for d in made.workloads[1].after.starts[0].differences] == [  # type: ignore[union-attr]
        "metadata.labels[tenant]"
    ]


def test_every_field_of_a_policy_is_compared() -> None:
    """A change of any is one."""
    own = set(Policy.__dataclass_fields__) - {"metadata", "conditions"}
    assert set(POLICY_FIELDS) == own


def test_odd_runtime_classes_of_a_tree_stop_nothing() -> None:
    """Their own validation is for the API server."""
    odd = [
        {"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "metadata": "x", "handler": []},
        {"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "metadata": {"name": {}}},
    ]
    assert not planned(cluster(snapshot(), standing=[workload()]), workload(), *odd).has_changes


# -- what stands


def test_nodes_that_fell_silent_before_the_others_do_not_count() -> None:
    """By the newest sign of life, so that an old file is judged as on its day."""
    lives = {"a": "2026-01-01T10:00:00.000000Z", "b": "2026-01-01T08:00:00.000000Z"}
    leases = [
        {
            "metadata": {
                "name": f"podsnap-node-{node}",
                "annotations": {
                    NODE_FACTS_ANNOTATION: NodeFacts(
                        node, replace(NODE, platform=node)
                    ).to_annotation()
                },
            },
            "spec": {"renewTime": at},
        }
        for node, at in lives.items()
    ]
    assert [c.nodes for c in standing({"Lease": leases}).classes] == [("a",)]


def test_what_a_workload_made_is_counted_once() -> None:
    """Its ReplicaSets and Pods go with it; what a person made counts itself."""
    owner = [{"kind": "Deployment", "name": "web", "controller": True}]
    made = workload("ReplicaSet", name="web-1")
    made["metadata"] |= {"ownerReferences": owner, "namespace": "shop"}
    own, theirs = (workload("Pod", "", name=n) for n in ("own", "theirs"))
    own["metadata"]["namespace"] = theirs["metadata"]["namespace"] = "shop"
    theirs["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "controller": True}]
    there = standing({"ReplicaSet": [made], "Pod": [own, theirs]})
    assert list(there.workloads) == [("Pod", "shop", "own")]
    assert [p.metadata.name for p in there.pods] == ["own"]


def test_the_same_object_twice_is_none_of_two() -> None:
    """Two that differ are an error, at the second."""
    assert read_manifests(files(workload(), workload()), "shop").errors == []
    (error,) = read_manifests(files(workload(), workload(image="b:1")), "shop").errors
    assert error.place == "tree.yaml:3:1"
    assert "Deployment shop/web is another one in tree.yaml:1:1" in error.message


# -- what retention deletes


TIMEOUT = {"retentionConfig": {"lastAccessTimeout": "1h"}}


@pytest.mark.parametrize(
    ("standing", "tree", "of", "rows"),
    [
        ({}, TIMEOUT, {}, [(NAME, True, True)]),
        (TIMEOUT, TIMEOUT, {}, [(NAME, True, False)]),
        (TIMEOUT, {"retentionConfig": {"lastAccessTimeout": "3h"}}, {}, [(NAME, False, True)]),
        ({}, TIMEOUT, {"annotations": {PS_NAME_ANNOTATION: NAME}}, []),
    ],
    ids=["a limit", "the same limit", "another limit", "a limit and a pin"],
)
def test_what_retention_deletes_is_new_only_by_the_tree(
    standing: dict[str, Any],
    tree: dict[str, Any],
    of: dict[str, Any],
    rows: list[tuple[str, bool, bool]],
) -> None:
    """What goes anyway is told, and is no change."""
    there = cluster(snapshot(), policies=(policy(**standing),), standing=[workload(**of)])
    made = planned(there, workload(**of), rule(**tree))
    assert [(d.name, d.is_due, d.is_new) for d in made.deletions] == rows
    assert made.has_changes == (standing != tree)


def test_a_snapshot_that_comes_back_is_not_told_to_go_for_being_obsolete() -> None:
    """By then it is not obsolete any more."""
    away = Condition(READY, "False", "Obsolete", "nobody wants it")
    story = (StoryEntry("Obsolete", "2026-01-01T11:00:00.000000Z"),)
    record = ControlRecord(story, unwanted_since="2026-01-01T10:00:00.000000Z")
    saved = replace(snapshot(), conditions={READY: away}, control=record)
    limited = Policy.parse(
        {**rule(), "metadata": {"name": "web", "namespace": "shop", "annotations": OBSOLETE_TTL}}
    )
    other = workload(image="registry.example/web:2")
    there = cluster(saved, policies=(limited,), standing=[other])
    assert len(planned(there, other).deletions) == 1
    assert planned(there, workload()).deletions == ()


# -- completed without an API server


@pytest.mark.parametrize(
    ("code", "text", "is_about_pod"),
    [
        (403, 'User "a" cannot create resource "pods" in API group ""', False),
        (403, "exceeded quota: all, requested: pods=1", False),
        (403, 'error looking up service account shop/web: serviceaccount "web" not found', False),
        (401, "Unauthorized", False),
        (500, "failed calling webhook", False),
        (400, "admission webhook does not support dry run", False),
        (403, 'violates PodSecurity "restricted:latest": runAsNonRoot != true', True),
        (403, 'admission webhook "x" denied the request: no tag', True),
        (422, "spec.containers[0].image: Required value", True),
    ],
)
def test_a_refusal_of_admission_is_told_from_one_of_the_question(
    *, code: int, text: str, is_about_pod: bool
) -> None:
    """Both are 403, and only the first is a mistake of the template."""
    assert is_verdict(from_status(code, {"message": f'pods "web" is forbidden: {text}'})) is (
        is_about_pod
    )


def test_the_token_of_the_service_account_is_added_once_and_where_it_is_not_refused() -> None:
    """As admission does: to containers that have nothing there."""
    plain_pod = pod()
    once = admitted_pod(plain_pod)
    fields = set(distill(once).fields) - set(distill(plain_pod).fields)
    assert fields == {"spec.volumes[<kube-api-access>]", "spec.containers[main].volumeMounts"}
    assert admitted_pod(once) is once
    refused = pod(automountServiceAccountToken=False)
    assert admitted_pod(refused) is refused
    assert manifest_of(once)["metadata"]["generateName"] == "web-0-"


# -- as it is read


def test_a_comment_is_never_longer_than_a_pull_request_takes() -> None:
    """What is left out is counted; what changes comes first."""
    names = [f"web-{number}" for number in range(400)]
    standing = [workload(name=n) for n in names]
    tree = [workload(name=n, image="registry.example/web:2") for n in names]
    made = planned(cluster(snapshot(), standing=standing), *tree)
    text = "\n".join(markdown(Told("tree", "it", ["x" * 50_000], ["y" * 1000] * 99, made)))
    assert len(text) < 65_536
    assert text.count("more; see -o json") == 2
    assert "| Deployment shop/web-0 |" in text
    assert text.endswith("</details>")


def test_markdown_shows_what_others_wrote_as_it_is() -> None:
    """A value may end no cell, begin no tag and call nobody."""
    image = "registry.example/web:2|</details>@team"
    made = planned(cluster(snapshot(), standing=[workload()]), workload(image=image))
    text = "\n".join(markdown(Told("tree", "it", [], [], made)))
    assert text.startswith("**podsnap plan** ")
    assert text.count("</details>") == 1
    assert "@team" not in text
    (row,) = (line for line in text.splitlines() if line.startswith("| spec.containers"))
    assert row.replace("\\|", "").count("|") == 4
    assert "<details><summary>" in text


def test_a_plan_reads_from_what_changes_to_what_is_not_known() -> None:
    """The whole page, once; on a pull request the consequence stands above the details."""
    unlike = NodeClass(replace(NODE, platform="kvm"), ("node-2",))
    apart = workload("Job", "batch", "other", labels={"app": "x"})
    there = cluster(
        snapshot(),
        policies=(policy(**TIMEOUT), YOUNG),
        standing=[workload(), apart],
        classes=(*NODES, unlike),
    )
    young = rule("young", triggerConfig={"type": "workload"})
    made = planned(there, workload(image="registry.example/web:2"), apart, young)
    told = Told("deploy", "what stands", ["1 by a dry run"], ["leases: forbidden"], made)
    assert list(lines(blocks(told))) == PAGE.splitlines()
    comment = "\n".join(markdown(told))
    assert comment.index("the first replica") < comment.index("<details>")
    assert comment.index("<details>") < comment.index("leases: forbidden")


PAGE = """\
Plan for deploy: 1 workload starts cold, 1 policy changes, 1 snapshot becomes obsolete
  compared with    what stands
  Pods completed   1 by a dry run

Workloads
  WORKLOAD              CHANGE         GOVERNED BY   NEXT POD   FROM   ON NODES   WHY
  Deployment shop/web   was restored   web           cold       -      node-1     SpecDiffers: spec.containers[main].image
  Deployment shop/web                  web           cold       -      node-2     SpecDiffers: spec.containers[main].image, node.platform

What differs: Deployment shop/web from 11111111 on node-1
  FIELD                         IN THE TREE                SAVED
  spec.containers[main].image   "registry.example/web:2"   "registry.example/web:1"

What differs: Deployment shop/web from 11111111 on node-2
  FIELD                         IN THE TREE                SAVED
  spec.containers[main].image   "registry.example/web:2"   "registry.example/web:1"
  node.platform                 kvm                        systrap

Policies
  POLICY       CHANGE    FIELDS                    GOVERNS
  shop/young   changed   spec.triggerConfig.type   -

Snapshots
  SNAPSHOT        BECOMES    POLICY   RESTORED SO FAR   WHY
  shop/11111111   obsolete   web      Deployment web    no Pod or template that policy web selects has its spec any more: they differ in spec.containers[main].image

Deleted by retention
  SNAPSHOT        GOES   BY THIS TREE   SIZE     WHY
  shop/11111111   now    no             1.0 kB   nothing was restored from it since its save ended at 2026-01-01T10:00:00Z, and policy web has lastAccessTimeout 1h

What follows
  Deployment shop/web: the first replica of its next rollout starts cold; to save anew: create a PodSnapshotManualTrigger with spec.targetPod: POD

Selected by several policies
  Deployment shop/web: web governs it, not young

Others
  1 that no policy governs; -o json has them

Not known
  leases: forbidden
"""  # noqa: E501 - lines are never wrapped
