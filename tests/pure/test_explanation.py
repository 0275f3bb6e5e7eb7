# SPDX-License-Identifier: Apache-2.0
"""Explanations say what the agent decides, and in which field it fails."""

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from api_objects import (
    FAILURE,
    NODE,
    capture_of,
    pinned,
    pod,
    pod_object,
    policy,
    snapshot,
    story_of,
)

from policies.capturing import TriggerInput
from policies.distill import distill
from policies.environment import env_marks
from policies.explanation import (
    PodExplanation,
    PodFacts,
    Start,
    Told,
    explain_gone_pod,
    explain_pod,
)
from policies.matching import Candidate, choose, judge
from policies.obsolescence import NodeClass
from policies.policy_explanation import explain_policy, explain_trigger
from policies.policy_review import PolicyFacts
from policies.snapshot_explanation import explain_snapshot
from policies.verdict import Reason
from reconciler.commands.output import Facts, Heading, Table, lines, plain
from reconciler.explanation import (
    gone_pod_blocks,
    pod_blocks,
    policy_blocks,
    snapshot_blocks,
    trigger_blocks,
)
from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import POD_RESTORED, STRICT_IDENTITY_ANNOTATION, TRIGGERED
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.policy_options import PolicyOptions
from schemas.snapshot import (
    Compatibility,
    ControlRecord,
    RestoreProgress,
    SizeParts,
    Snapshot,
)
from schemas.storage_config import Location, StorageConfig
from schemas.trigger import ManualTrigger

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
STORE = StorageConfig(Metadata(name="store"), Location("b", "snapshots"))
CLOSED = replace(STORE, metadata=Metadata("store", annotations={"podsnap.dev/namespaces": "x"}))
OTHER_IMAGE = pod(containers=[{"name": "main", "image": "registry.example/web:2"}])
PIN = "11111111-1111-5111-8111-111111111111"
SECRETS = [{"name": "keys", "secret": {"secretName": "keys"}}]


def facts(of: Pod | None = None, *snapshots: Snapshot, **more: Any) -> PodFacts:  # noqa: ANN401 - fields
    """Return a Pod on a node that published itself, under one policy."""
    base = PodFacts(of or pod(), (policy(),), STORE, NODE, snapshots=snapshots)
    return replace(base, **more)


def on(**differs: Any) -> Compatibility:  # noqa: ANN401 - fields
    """Return what another kind of node published."""
    return replace(NODE, **differs)


def saved(name: str = PIN, **capture: Any) -> Snapshot:  # noqa: ANN401 - fields of the record
    """Return a snapshot with another record."""
    return snapshot(name, capture=replace(capture_of(pod()), **capture))


# -- the verdict is the agent's


DECISIONS: dict[str, PodFacts] = {
    "a snapshot that fits": facts(None, snapshot()),
    "the newest of two": facts(
        None, snapshot("a"), saved("b", checkpointed_at="2026-01-01T11:00:00.000000Z")
    ),
    "no snapshot": facts(),
    "another image": facts(OTHER_IMAGE, snapshot()),
    "another node": facts(None, snapshot(), node=on(runsc_version="release-2")),
    "one that is not ready": facts(None, snapshot(is_ready=False)),
    "a quarantined one": facts(None, snapshot(damage="a part is missing")),
    "a pin": facts(pinned(PIN), snapshot(), snapshot("b")),
    "a pin to nothing": facts(pinned("gone"), snapshot()),
    "an empty pin": facts(pinned(""), snapshot()),
    "a pin to another policy's": facts(pinned(PIN), snapshot(policy_name="old")),
    "another group": facts(
        pod(labels={"app": "web", "tenant": "a"}),
        snapshot(labels={"tenant": "b"}),
        policies=(policy(labels=("tenant",)),),
    ),
    "files where memory is wanted": facts(None, saved(rootfs_only=True)),
}


@pytest.mark.parametrize("what", DECISIONS)
def test_what_is_told_is_what_the_agent_would_decide(what: str) -> None:
    """The same snapshot, or the same reason in the same words."""
    given = DECISIONS[what]
    (governing,) = given.policies
    candidate = Candidate(given.pod, governing, distill(given.pod, governing), NODE)
    choice = choose(replace(candidate, node=given.node or NODE), given.snapshots)
    told = explain_pod(given)
    assert told.chosen == (choice.snapshot.metadata.name if choice.snapshot else "")
    assert (told.cause, told.why_not) == (choice.cause or "", choice.reason)
    assert {c.name: c.usable for c in told.candidates} == {
        s.metadata.name: judge(replace(candidate, node=given.node or NODE), s).usable
        for s in given.snapshots
        if s.policy_name == "web" or s.metadata.name == given.pod.pinned_snapshot
    }


NOT_ASKED: dict[str, tuple[PodFacts, Reason]] = {
    "a Pod outside gVisor": (facts(None, snapshot(), is_gvisor=False), Reason.NOT_IN_GVISOR),
    "a Pod of no policy": (facts(pod(labels={"app": "db"}), snapshot()), Reason.NOT_GOVERNED),
    "a bucket of others": (facts(None, snapshot(), storage=CLOSED), Reason.STORAGE_NOT_ALLOWED),
}


@pytest.mark.parametrize("what", NOT_ASKED)
def test_a_pod_that_matching_is_never_asked_about_starts_cold(what: str) -> None:
    """With the reason that the node has, and something to do about it."""
    given, cause = NOT_ASKED[what]
    told = explain_pod(given)
    assert (told.chosen, told.cause) == ("", cause)
    assert told.what_to_do


def test_a_node_that_cannot_be_read_is_not_held_against_a_snapshot() -> None:
    """What is unknown is left out, and everything else is still judged."""
    other = saved(compatibility=on(platform="kvm"))
    assert explain_pod(facts(None, other, node=None)).chosen == PIN
    assert explain_pod(facts(OTHER_IMAGE, other, node=None)).cause == Reason.SPEC_DIFFERS
    assert explain_pod(facts(None, other, node=None)).node_facts is None


def test_mounted_contents_that_only_a_node_sees_count_as_equal() -> None:
    """A policy that counts them would else have no snapshot that fits."""
    options = PolicyOptions.parse({STRICT_IDENTITY_ANNOTATION: "secrets"})
    strict = replace(policy(), options=options)
    mounting = pod(volumes=SECRETS)
    on_node = distill(mounting, strict, {"keys": "as the node read it"})
    stored = snapshot(capture=replace(capture_of(mounting), identity=on_node))
    assert explain_pod(facts(mounting, stored, policies=(strict,))).chosen == PIN
    loose = snapshot(capture=capture_of(mounting))
    told = explain_pod(facts(mounting, loose, policies=(strict,)))
    assert [(d.path, d.pod) for d in told.candidates[0].differences] == [
        ("spec.volumes[keys].content", "(a digest)")
    ]


# -- field by field


CHANGES: dict[str, tuple[PodFacts, str, str | None, str | None]] = {
    "an image": (
        facts(OTHER_IMAGE, snapshot()),
        "spec.containers[main].image",
        '"registry.example/web:2"',
        '"registry.example/web:1"',
    ),
    "a field that was not there": (
        facts(pod(hostUsers=False), snapshot()),
        "spec.hostUsers",
        "false",
        None,
    ),
    "the group": (
        facts(
            pod(labels={"app": "web", "tenant": "a"}),
            snapshot(labels={"tenant": "b"}),
            policies=(policy(labels=("tenant",)),),
        ),
        "metadata.labels[tenant]",
        "a",
        "b",
    ),
    "the scope": (
        facts(None, saved(rootfs_only=True)),
        "policy.snapshotScope",
        "whole-pod",
        "rootfs-only",
    ),
    "an image that nobody noted": (
        facts(None, saved(image_ids={})),
        "images[main]",
        "made later",
        None,
    ),
    "the runsc version": (
        facts(None, snapshot(), node=on(runsc_version="release-2")),
        "node.runscVersion",
        "release-2",
        "release-1",
    ),
    "the runsc build": (
        facts(None, snapshot(), node=on(runsc_digest="sha256:bb")),
        "node.runscDigest",
        "sha256:bb",
        "sha256:aa",
    ),
    "the platform": (
        facts(None, snapshot(), node=on(platform="kvm")),
        "node.platform",
        "kvm",
        "systrap",
    ),
    "the architecture": (
        facts(None, snapshot(), node=on(architecture="arm64")),
        "node.architecture",
        "arm64",
        "amd64",
    ),
    "the machine series": (
        facts(None, snapshot(), node=on(machine_series="n2")),
        "node.machineSeries",
        "n2",
        "",
    ),
    "a flag": (
        facts(None, snapshot(), node=on(runtime_config={"overlay2": "all"})),
        "node.runtimeConfig.overlay2",
        "all",
        "none",
    ),
    "a CPU feature": (
        facts(None, snapshot(), node=on(cpu_features=("avx",))),
        "node.cpuFeatures",
        None,
        "sse4_2",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_difference_is_a_row_with_both_values(what: str) -> None:
    """And nothing that matching finds is without its row."""
    given, path, mine, theirs = CHANGES[what]
    (candidate,) = explain_pod(given).candidates
    assert [(d.path, d.pod, d.saved) for d in candidate.differences] == [(path, mine, theirs)]
    assert len(candidate.findings) == 1
    assert not candidate.usable


def test_every_field_of_the_compatibility_key_has_a_row() -> None:
    """A field that is added there is compared here too."""
    changed: dict[str, Any] = {f.name: "another" for f in fields(Compatibility)}
    changed |= {"runtime_config": {"overlay2": "another"}, "cpu_features": ()}
    told = explain_pod(facts(None, snapshot(), node=Compatibility(**changed)))
    assert len(told.candidates[0].differences) == len(fields(Compatibility))


def test_more_cpu_features_than_were_saved_are_no_difference() -> None:
    """They are the one comparison that is not for equality."""
    told = explain_pod(facts(None, snapshot(), node=on(cpu_features=("avx", "sse4_2", "vnni"))))
    assert told.chosen == PIN
    assert told.candidates[0].differences == ()


def test_a_pod_that_is_being_restored_says_how_far_it_is() -> None:
    """From the snapshot's own list of running restores."""
    progress = RestoreProgress("web-0", "node-1", "Fetching", "2026-01-01T11:59:00Z", 500, 1000)
    busy = replace(snapshot(), restores={"uid-web-0": progress})
    text = "\n".join(lines(pod_blocks(explain_pod(facts(None, busy)), NOW)))
    assert "web-0 on node-1: Fetching 50% of 1.0 kB" in text


def test_an_environment_that_differs_is_named_and_forbids_nothing() -> None:
    """By key, never by value."""

    def with_token(value: str) -> Pod:
        env = [{"name": "TOKEN", "value": value}]
        return pod(containers=[{"name": "main", "image": "registry.example/web:1", "env": env}])

    marks = env_marks(with_token("one"), "shop")
    told = explain_pod(facts(with_token("two"), saved(env_marks=marks)))
    assert told.chosen == PIN
    assert told.candidates[0].environment == ("container main: TOKEN differs",)
    text = "\n".join(lines(pod_blocks(told, NOW)))
    assert "TOKEN differs" in text
    assert "two" not in text


def test_a_page_shows_the_newest_and_says_how_many_more_there_are() -> None:
    """A policy may have hundreds, and programs get them all."""
    many = [snapshot(f"s{number:02}") for number in range(12)]
    told = explain_pod(facts(OTHER_IMAGE, *many))
    text = "\n".join(lines(pod_blocks(told, NOW)))
    assert len(told.candidates) == 12
    assert text.count("What differs from") == 10
    assert "and 2 older ones; -o json has them" in text


# -- which policy


OLD, YOUNG = policy("old", created="2025-01-01T00:00:00Z"), policy("young")


@pytest.mark.parametrize(
    ("of", "policies", "standings"),
    [
        (pod(), (YOUNG, OLD), [("old", True, "the oldest"), ("young", False, "old is older")]),
        (pod(), (policy(),), [("web", True, "it alone selects the Pod")]),
        (
            pod(labels={"app": "db"}),
            (policy(),),
            [("web", False, "its selector wants label app In web; the Pod's is 'db'")],
        ),
        (pod(labels={}), (policy(),), [("web", False, "the Pod does not have it")]),
        (
            pod(annotations={"kubernetes.io/config.mirror": "x"}),
            (policy(),),
            [("web", False, "static Pod")],
        ),
        (
            pod(),
            (replace(policy(), metadata=replace(policy().metadata, deletion_timestamp="t")),),
            [("web", False, "being deleted")],
        ),
    ],
    ids=["the older one", "one", "another label", "no label", "a static Pod", "one that goes"],
)
def test_each_policy_says_why_it_governs_or_does_not(
    of: Pod, policies: Sequence[Policy], standings: list[tuple[str, bool, str]]
) -> None:
    """The governing one first."""
    told = explain_pod(facts(of, policies=policies)).policies
    assert [(p.name, p.governs) for p in told] == [
        (name, governs) for name, governs, _ in standings
    ]
    for standing, (_, _, why) in zip(told, standings, strict=True):
        assert why in standing.why


# -- what happened


def event(message: str, *, uid: str = "uid-web-0", at: str = "2026-01-01T11:00:00Z") -> Told:
    """Return an Event of ours."""
    return Told(at, "Warning", message, pod_uid=uid)


def with_restored(status: Any, message: str) -> Pod:  # noqa: ANN401 - a status
    """Return a Pod with the condition."""
    condition = Condition(POD_RESTORED, status, "R", message, "2026-01-01T11:30:00Z")
    return replace(pod(), conditions={POD_RESTORED: condition})


COLD = "falling back to a cold start of pod: PodSnapshot shop/one does not fit: the image"
FELL_BACK = "falling back to a cold start of pod: restoring PodSnapshot shop/one failed: exit 1"
RESTORED = "Successfully restored the pod from PodSnapshot shop/one"


@pytest.mark.parametrize(
    ("of", "events", "start", "of_snapshot"),
    [
        (with_restored("True", RESTORED), (), Start.RESTORED, "one"),
        (with_restored("False", "PodSnapshot shop/one could not be"), (), Start.FELL_BACK, "one"),
        (pod(), (event(f"{COLD}; see `podsnap explain pod web-0 -n shop`"),), Start.COLD, "one"),
        (pod(), (event("Started cold: no snapshot is ready yet"),), Start.COLD, ""),
        (pod(), (event(FELL_BACK),), Start.FELL_BACK, "one"),
        (pod(), (event(RESTORED),), Start.RESTORED, "one"),
        (pod(), (event(RESTORED), event(COLD, at="2026-01-01T11:00:01Z")), Start.COLD, "one"),
        (pod(), (event(RESTORED, uid="another"),), Start.COLD, ""),
        (pod(), (), Start.COLD, ""),
        (replace(pod(), phase="Pending"), (), Start.NOT_STARTED, ""),
    ],
    ids=[
        "the condition",
        "the condition of a failed restore",
        "an Event of a miss",
        "an Event that nothing is there",
        "an Event of a failed restore",
        "an Event of a restore",
        "the newest of two Events",
        "an Event of an earlier Pod",
        "nothing at all",
        "no sandbox yet",
    ],
)
def test_how_a_pod_started_is_told_from_what_is_left(
    of: Pod, events: Sequence[Told], start: Start, of_snapshot: str
) -> None:
    """The condition first, else the newest Event on this very Pod."""
    happened = explain_pod(facts(of, events=events)).happened
    assert (happened.start, happened.snapshot) == (start, of_snapshot)
    assert "podsnap explain" not in happened.message


def test_a_pod_that_is_gone_is_told_of_by_events_and_snapshots() -> None:
    """How it started, what it was saved as, and whose restore it spoiled."""
    spoiled = replace(snapshot("b", capture=capture_of(pod("web-9"))), failures={"uid-web-0": "x"})
    told = explain_gone_pod("shop", "web-0", snapshots=[snapshot(), spoiled], events=[event(COLD)])
    assert told is not None
    assert told.happened.start is Start.COLD
    assert (told.saved_as, told.spoiled) == ((PIN,), ("b: x",))
    text = "\n".join(lines(gone_pod_blocks(told, NOW)))
    assert "Pod shop/web-0, which is gone" in text
    assert "60m ago" in text
    assert explain_gone_pod("shop", "web-7", snapshots=[snapshot()], events=[]) is None


# -- what to do


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (facts(), "spec.targetPod: web-0"),
        (facts(policies=(policy(trigger="workload"),)), "write 1 to /proc/gvisor/checkpoint"),
        (facts(OTHER_IMAGE, snapshot()), "give the Pod the saved fields again"),
        (facts(None, snapshot(), node=on(platform="kvm")), "`podsnap nodes`"),
        (facts(None, snapshot(is_ready=False)), f"podsnap explain snapshot {PIN}"),
        (facts(None, snapshot(damage="x")), "podsnap.dev/quarantine=lifted"),
        (facts(pinned(""), snapshot()), "remove the annotation"),
        (facts(pinned("gone"), snapshot()), "correct or remove the annotation"),
        (facts(storage=None), "mend the storage"),
        (facts(pod(labels={})), "create a PodSnapshotPolicy"),
    ],
    ids=[
        "nothing saved",
        "nothing saved by itself",
        "another spec",
        "another node",
        "not ready",
        "quarantined",
        "an empty pin",
        "a wrong pin",
        "no storage",
        "no policy",
    ],
)
def test_every_miss_says_what_to_do(given: PodFacts, advice: str) -> None:
    """In a sentence that can be followed."""
    assert advice in " ".join(explain_pod(given).what_to_do)


def test_a_pod_that_will_be_restored_needs_nothing() -> None:
    """No advice where nothing is wrong."""
    assert explain_pod(facts(None, snapshot())).what_to_do == ()


# -- snapshots


def stored(**more: Any) -> Snapshot:  # noqa: ANN401 - fields
    """Return a snapshot with its whole life."""
    capture = replace(
        capture_of(pod()),
        size_bytes=50_000_000,
        checkpoint_s=0.5,
        seal_s=0.1,
        sealed_at="2026-01-01T10:00:01.000000Z",
        uploaded_at="2026-01-01T10:00:03.000000Z",
        sizes=SizeParts(40_000_000, 10_000_000, 0, 0),
    )
    story = ControlRecord(
        story_of("Pending", "Checkpointing", "Uploading", "AllSnapshotsAvailable")
    )
    return replace(snapshot(capture=capture), control=story, restored_by={"n1": 2, "n2": 3}, **more)


def explained(of: Snapshot, **more: Any) -> Any:  # noqa: ANN401 - arguments
    """Explain a snapshot on one node of its kind."""
    base: dict[str, Any] = {
        "policy": policy(),
        "classes": [NodeClass(NODE, ("n1", "n2"))],
        "restoring": (),
        "retention": "until somebody deletes it",
    }
    return explain_snapshot(of, **{**base, **more})


def test_a_snapshot_tells_its_life_its_rates_and_whom_it_served() -> None:
    """As values for programs and as text for people."""
    progress = RestoreProgress("web-3", "n2", "Fetching", "2026-01-01T11:59:00Z", 5, 50_000_000)
    told = explained(stored(), restoring=(progress,))
    assert [(c.state, c.after_s) for c in told.story] == [
        ("Pending", None),
        ("Checkpointing", 1.0),
        ("Uploading", 1.0),
        ("AllSnapshotsAvailable", 1.0),
    ]
    assert [(r.step, r.took_s, r.bytes_per_s) for r in told.rates] == [
        ("checkpoint", 0.5, 100_000_000),
        ("seal", 0.1, 500_000_000),
        ("upload", 2.0, 25_000_000),
    ]
    assert (told.restores, [n.fits for n in told.nodes]) == (5, [True])
    text = "\n".join(lines(snapshot_blocks(told, NOW)))
    for part in ("memory", "40.0 MB (80%)", "25.0 MB/s", "web-3 on n2: Fetching 0% of 50.0 MB"):
        assert part in text
    value = plain(told)
    assert value["rates"][2] == {"step": "upload", "tookSeconds": 2.0, "bytesPerSecond": 25_000_000}
    assert value["sizes"]["memoryBytes"] == 40_000_000


@pytest.mark.parametrize(
    ("of", "more", "advice"),
    [
        (replace(snapshot(), capture=replace(capture_of(pod()), failure=FAILURE)), {}, "never"),
        (snapshot(damage="x"), {}, "quarantine=lifted"),
        (snapshot(), {"policy": None}, "create a policy of the name web"),
        (snapshot(), {"classes": [NodeClass(on(platform="kvm"), ("n1",))]}, "no node can run it"),
    ],
    ids=["failed", "quarantined", "without a policy", "on no node"],
)
def test_a_snapshot_that_serves_nobody_says_what_to_do(
    of: Snapshot, more: dict[str, Any], advice: str
) -> None:
    """One sentence for each cause."""
    assert advice in " ".join(explained(of, **more).what_to_do)


# -- policies and triggers


def reach(of: Policy, *pods: Pod, **more: Any) -> list[str]:  # noqa: ANN401 - fields
    """Return what the next save of each Pod waits for."""
    base = PolicyFacts(of, STORE, pods, (of,), gvisor_classes={"gvisor"}, nodes={"node-1": NODE})
    return [p.next_save for p in explain_policy(replace(base, **more), now=NOW).pods]


READY_PROBE = policy(trigger="readinessProbe")


@pytest.mark.parametrize(
    ("of", "pods", "more", "next_save"),
    [
        (policy(), [pod()], {}, "create a PodSnapshotManualTrigger with spec.targetPod: web-0"),
        (policy(), [pod(is_ready=False)], {}, "but it is not Ready now"),
        (policy(), [pod(runtimeClassName="runc")], {}, "none: it does not run in gVisor"),
        (policy(), [pod(hostNetwork=True)], {}, "none: a Pod with hostNetwork cannot be restored"),
        (policy(), [replace(pod(), phase="Failed")], {}, "none: it is over"),
        (policy(), [pod()], {"storage": None}, "waits for storage"),
        (policy(), [pod()], {"policies": (OLD, policy())}, "none: old governs it"),
        (policy(trigger="workload"), [pod()], {}, "waits for the controller"),
        (policy(trigger="workload"), [pod()], {"nodes": {}}, "waits for the agent of its node"),
        (READY_PROBE, [pod(is_ready=False)], {}, "when it becomes Ready"),
        (READY_PROBE, [pod()], {}, "none: it did not become Ready lately"),
        (policy(trigger="onDelete"), [pod()], {}, "is saved before it goes"),
    ],
    ids=[
        "manual",
        "manual and not Ready",
        "not in gVisor",
        "a shape that is refused",
        "over",
        "no storage",
        "another policy's",
        "workload",
        "no agent",
        "readinessProbe and not Ready",
        "readinessProbe",
        "onDelete",
    ],
)
def test_a_policy_says_what_the_next_save_waits_for(
    of: Policy, pods: list[Pod], more: dict[str, Any], next_save: str
) -> None:
    """Or why there is none."""
    (told,) = reach(of, *pods, **more)
    assert next_save in told


def test_a_policy_counts_its_snapshots_by_group() -> None:
    """With the newest of each, and how many may be kept."""
    grouped = policy(labels=("tenant",))
    a, b = snapshot("a", labels={"tenant": "a"}), snapshot("b", labels={"tenant": "b"})
    late = replace(capture_of(pod()), checkpointed_at="2026-01-01T11:00:00.000000Z")
    newer = snapshot("c", labels={"tenant": "a"}, capture=late, is_ready=False)
    told = explain_policy(PolicyFacts(grouped, STORE, snapshots=[a, b, newer]), now=NOW)
    assert [(g.labels, g.snapshots, g.usable, g.newest) for g in told.groups] == [
        ({"tenant": "a"}, 2, 1, "c"),
        ({"tenant": "b"}, 1, 1, "b"),
    ]
    assert "tenant=a" in "\n".join(lines(policy_blocks(told, NOW)))


def trigger(*answer: str, made: str = "") -> ManualTrigger:
    """Return a trigger with its condition: status, reason, message."""
    conditions = {}
    if answer:
        status: Any = answer[0]
        conditions = {TRIGGERED: Condition(TRIGGERED, status, answer[1], answer[2])}
    return ManualTrigger(Metadata("t", "shop", "uid-t"), "web-0", made, conditions)


@pytest.mark.parametrize(
    ("of", "there", "target", "state", "says"),
    [
        (trigger(), None, pod(), ("New", ""), "podsnap controller"),
        (trigger("False", "Pending", "m"), snapshot(), pod(), ("Pending", PIN), f"snapshot {PIN}"),
        (trigger("True", "Complete", "m", made=PIN), snapshot(), pod(), ("Complete", PIN), ""),
        (trigger("True", "Complete", "m", made=PIN), None, pod(), ("Complete", PIN), "deleted"),
        (trigger("False", "Failed", "m"), None, None, ("Failed", ""), "create a new trigger"),
        (trigger("False", "Pending", "m"), None, None, ("Pending", ""), "does not exist"),
    ],
    ids=["new", "being saved", "saved", "saved and deleted", "refused", "waiting in vain"],
)
def test_a_trigger_says_where_it_stands(
    of: ManualTrigger, there: Snapshot | None, target: Pod | None, state: tuple[str, str], says: str
) -> None:
    """What it made, and what to do next."""
    given = TriggerInput("web-0", target, policy() if target else None, {"gvisor": True})
    told = explain_trigger(of, given=given, storage=STORE, snapshot=there, snapshot_name=PIN)
    assert (told.state, told.snapshot) == state
    assert says in "\n".join(lines(trigger_blocks(told, NOW)))


# -- for people


def test_a_pod_reads_from_what_is_so_to_what_to_do() -> None:
    """The whole page, once."""
    told = explain_pod(facts(OTHER_IMAGE, snapshot(), events=[event(COLD)]))
    assert list(lines(pod_blocks(told, NOW))) == PAGE.splitlines()


PAGE = """\
Pod shop/web-0
  phase         Running on node-1
  started       cold, 60m ago: falling back to a cold start of pod: PodSnapshot shop/one does not fit: the image
  governed by   web
  storage       store (gs://b/snapshots)
  saved as      11111111-1111-5111-8111-111111111111

A Pod like this one, started now
  starts cold: PodSnapshot shop/11111111-1111-5111-8111-111111111111 does not fit: spec.containers[main].image is "registry.example/web:2", saved with "registry.example/web:1"

Candidates, newest first
  SNAPSHOT                               STATE                   FITS   SAVED FROM   SAVED   SIZE     WHY NOT
  11111111-1111-5111-8111-111111111111   AllSnapshotsAvailable   no     web-0        2h      1.0 kB   SpecDiffers

What differs from 11111111-1111-5111-8111-111111111111
  FIELD                         THIS POD                   SAVED
  spec.containers[main].image   "registry.example/web:2"   "registry.example/web:1"

Node node-1
  runscVersion             release-1
  runscDigest              sha256:aa
  platform                 systrap
  architecture             amd64
  cpuFeatures              avx,sse4_2
  runtimeConfig.overlay2   none

Events
  AT                     TYPE      MESSAGE
  2026-01-01T11:00:00Z   Warning   falling back to a cold start of pod: PodSnapshot shop/one does not fit: the image

What to do
  - give the Pod the saved fields again, or save anew: create a PodSnapshotManualTrigger with spec.targetPod: web-0
"""  # noqa: E501 - lines are never wrapped


def test_what_others_wrote_never_reaches_a_terminal_as_control_characters() -> None:
    """A message could else repaint the screen."""
    shown = list(
        lines(
            [
                Heading("a\x1b[2Jb"),
                Facts([("k", "one\ntwo"), ("empty", "")]),
                Table(["H"], [["a\rb"]]),
            ]
        )
    )
    assert shown == ["a [2Jb", "  k   one two", "  H", "  a b"]


def test_the_explanation_of_a_whole_pod_is_json() -> None:
    """Its names are spelled as the API spells its own."""
    told: PodExplanation = explain_pod(facts(Pod.parse(pod_object()), snapshot()))
    value = plain(told)
    assert value["governedBy"] == "web"
    assert value["happened"]["start"] == "Cold"
    assert value["candidates"][0]["sizeBytes"] == 1000
