# SPDX-License-Identifier: Apache-2.0
"""Which snapshot a Pod is restored from, and why not."""

from dataclasses import replace
from pathlib import Path

import pytest
from api_objects import NODE, capture_of, pinned, pod, policy, snapshot
from hypothesis import given
from hypothesis import strategies as st

from nodeexec.node_description import cpu_series
from policies.compatibility import incompatibilities, machine_series
from policies.distill import distill
from policies.matching import Candidate, choose, judge
from policies.new_snapshots import automatic_snapshot
from policies.selection import governing_policy, group_labels, selecting_policies
from policies.verdict import Reason
from schemas.conditions import Condition
from schemas.names import READY
from schemas.pod import MIRROR_ANNOTATION, Pod
from schemas.policy import Policy
from schemas.snapshot import Compatibility, Snapshot
from schemas.storage_config import Location

OLD = "00000000-0000-5000-8000-000000000001"
NEW = "00000000-0000-5000-8000-000000000002"


def candidate(
    of: Pod | None = None, under: Policy | None = None, node: Compatibility = NODE
) -> Candidate:
    """Return a Pod about to start on a node."""
    wanted = of or pod("web-1")
    return Candidate(pod=wanted, policy=under or policy(), identity=distill(wanted), node=node)


# -- compatibility

DIFFERENT = {
    "the runsc version": replace(NODE, runsc_version="release-2"),
    "the runsc build": replace(NODE, runsc_digest="sha256:bb"),
    "the gVisor platform": replace(NODE, platform="kvm"),
    "the architecture": replace(NODE, architecture="arm64"),
    "the machine series": replace(NODE, machine_series="n2"),
    "the runsc flag overlay2": replace(NODE, runtime_config={"overlay2": "root:self"}),
    "the runsc flag nvproxy": replace(NODE, runtime_config={"overlay2": "none", "nvproxy": "true"}),
    "CPU lacks features": replace(NODE, cpu_features=("avx",)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_each_difference_of_nodes_is_named_once(what: str) -> None:
    """Runsc would not notice most of them before the application crashes."""
    (found,) = incompatibilities(NODE, DIFFERENT[what])
    assert what in found


def test_a_flag_that_only_the_source_had_is_a_difference() -> None:
    """Absent is a value of its own."""
    (found,) = incompatibilities(NODE, replace(NODE, runtime_config={}))
    assert "overlay2 is None on this node, saved with none" in found


def test_a_node_that_published_nothing_fits_nothing() -> None:
    """Every unknown is said to be unknown."""
    found = incompatibilities(NODE, Compatibility())
    assert "the runsc version is unknown on this node, saved with release-1" in found


@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")))
def test_a_cpu_may_have_more_features_and_never_fewer(saved: set[str], here: set[str]) -> None:
    """The one comparison that is not equality."""
    found = incompatibilities(
        replace(NODE, cpu_features=tuple(saved)), replace(NODE, cpu_features=tuple(here))
    )
    assert (not found) is (saved <= here)


SERIES = {
    "n2-standard-4": "n2",
    "n2-standard-96": "n2",
    "n2": "n2",
    "e2-medium": "e2",
    "c3d-highcpu-8-lssd": "c3d",
    "m5.large": "m5",
    "m5.24xlarge": "m5",
    "u-6tb1.metal": "u-6tb1",
    "Standard_D4s_v5": "Ds_v5",
    "Standard_D64s_v5": "Ds_v5",
    "Standard_E4-2ds_v4": "Eds_v4",
    "rack-7": "rack-7",
    "": "",
}


@pytest.mark.parametrize("instance_type", SERIES)
def test_the_size_of_a_machine_is_no_part_of_its_series(instance_type: str) -> None:
    """Memory that ran on four CPUs runs on ninety-six."""
    assert machine_series(instance_type) == SERIES[instance_type]


def test_without_an_instance_type_the_kind_of_cpu_counts_and_not_how_many(tmp_path: Path) -> None:
    """Vendor, family and model of the first; stepping, clock and number may differ."""
    cpu = "processor\t: {}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
    named = "model name\t: Some CPU\nstepping\t: {}\ncpu MHz\t\t: {}\n\n"
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_text(cpu.format(0) + named.format(8, 2700))
    large.write_text("".join(cpu.format(n) + named.format(4, 2000 + n) for n in range(8)))
    assert cpu_series(small) == cpu_series(large) == "GenuineIntel-6-143"


def test_compatibility_survives_its_record() -> None:
    """It is written into status, manifest and Lease, and compared after reading."""
    assert Compatibility.parse(NODE.to_object()) == NODE
    assert Compatibility.parse({}) == Compatibility()


# -- judging one snapshot


def failing(times: int) -> Snapshot:
    """Return a Ready snapshot from which so many Pods could not be restored."""
    failures = {f"uid-{n}": "bad fd" for n in range(times)}
    return replace(snapshot(), failures=failures)


def test_an_equal_pod_on_an_equal_node_is_restored() -> None:
    """The ordinary case: another replica."""
    assert judge(candidate(), snapshot()).usable


INIT = [{"name": "side", "image": "i"}]
SIDECAR = [{"name": "side", "image": "i", "restartPolicy": "Always"}]
JUDGED = {
    "another namespace": (candidate(), snapshot(namespace="other"), Reason.OTHER_NAMESPACE),
    "another policy": (candidate(), snapshot(policy_name="other"), Reason.OTHER_POLICY),
    "not ready": (candidate(), snapshot(is_ready=False), Reason.NOT_READY),
    "damaged": (candidate(), snapshot(damage="part pages.img"), Reason.QUARANTINED),
    "three failed restores": (candidate(), failing(3), Reason.QUARANTINED),
    "another spec": (candidate(pod(dnsPolicy="Default")), snapshot(), Reason.SPEC_DIFFERS),
    "another group": (
        candidate(pod(labels={"app": "web", "tenant": "2"}), policy(labels=("tenant",))),
        snapshot(labels={"tenant": "1"}),
        Reason.GROUP_DIFFERS,
    ),
    "fewer group labels": (
        candidate(pod(), policy(labels=("tenant",))),
        snapshot(labels={"tenant": "1"}),
        Reason.GROUP_DIFFERS,
    ),
    "a container more": (
        candidate(pod(initContainers=SIDECAR)),
        replace(snapshot(), capture=capture_of(pod(initContainers=INIT))),
        Reason.SPEC_DIFFERS,
    ),
    "a container fewer": (
        candidate(pod(initContainers=INIT)),
        replace(snapshot(), capture=capture_of(pod(initContainers=SIDECAR))),
        Reason.SPEC_DIFFERS,
    ),
    "another node": (
        candidate(node=replace(NODE, platform="kvm")),
        snapshot(),
        Reason.NODE_INCOMPATIBLE,
    ),
}


@pytest.mark.parametrize("what", JUDGED)
def test_each_obstacle_has_its_reason(what: str) -> None:
    """A program matches on the reason, people read the message."""
    asked, saved, reason = JUDGED[what]
    verdict = judge(asked, saved)
    assert [f.reason for f in verdict.findings] == [reason]
    assert verdict.message
    assert verdict.refusal.startswith(f"{reason}: ")


def test_two_failed_restores_do_not_take_a_snapshot_out_of_use() -> None:
    """The third does, before the controller has shown it."""
    assert judge(candidate(), failing(2)).usable
    assert "3 restores failed: bad fd" in judge(candidate(), failing(3)).message


def test_judging_never_stops_at_the_first_difference() -> None:
    """Who mends one wants to see them all."""
    verdict = judge(
        candidate(pod(dnsPolicy="Default", hostIPC=True), node=replace(NODE, platform="kvm")),
        snapshot(is_ready=False, damage="x"),
    )
    assert [f.reason for f in verdict.findings] == [
        Reason.NOT_READY,
        Reason.QUARANTINED,
        Reason.SPEC_DIFFERS,
        Reason.SPEC_DIFFERS,
        Reason.NODE_INCOMPATIBLE,
    ]


def test_a_snapshot_that_nobody_saved_yet_is_not_ready() -> None:
    """Its record is missing, so nothing can be compared."""
    waiting = replace(snapshot(), capture=None, conditions={})
    assert [f.reason for f in judge(candidate(), waiting).findings] == [Reason.NOT_READY]


def test_a_snapshot_that_is_being_deleted_is_not_ready() -> None:
    """Its bytes vanish while its last condition still says True."""
    ready = snapshot()
    going = replace(ready, metadata=replace(ready.metadata, deletion_timestamp="2026"))
    assert not judge(candidate(), going).usable


# -- choosing


def saved_at(name: str, at: str) -> Snapshot:
    """Return a Ready snapshot that was saved at an instant."""
    return snapshot(name, capture=capture_of(pod(), at=at))


def test_the_newest_fitting_snapshot_is_taken() -> None:
    """Newest is when it was saved, whatever the order of the list."""
    old = saved_at(OLD, "2026-01-01T10:00:00.000000Z")
    new = saved_at(NEW, "2026-01-02T10:00:00.000000Z")
    assert choose(candidate(), [old, new]).snapshot == new
    assert choose(candidate(), [new, old]).snapshot == new


def test_an_older_one_is_taken_where_the_newest_does_not_fit() -> None:
    """It is the next choice, not obsolete."""
    old = saved_at(OLD, "2026-01-01T10:00:00.000000Z")
    kvm = replace(
        capture_of(pod(), at="2026-01-02T10:00:00.000000Z"),
        compatibility=replace(NODE, platform="kvm"),
    )
    assert choose(candidate(), [old, snapshot(NEW, capture=kvm)]).snapshot == old


def test_damaged_and_unready_snapshots_are_passed_over() -> None:
    """Nothing is restored that was not verified."""
    good = saved_at(OLD, "2026-01-01T10:00:00.000000Z")
    damaged = replace(saved_at(NEW, "2026-01-02T10:00:00.000000Z"), damage="pages.img")
    unready = snapshot("u", is_ready=False)
    assert choose(candidate(), [damaged, unready, good]).snapshot == good


def test_without_any_snapshot_a_cold_start_is_what_anybody_expects() -> None:
    """Its event is no warning."""
    choice = choose(candidate(), [])
    assert (choice.snapshot, choice.noteworthy) == (None, False)
    assert choice.reason == "no snapshot of policy web is ready yet"


def test_a_snapshot_of_another_policy_or_namespace_is_not_even_mentioned() -> None:
    """It was never meant for this Pod."""
    choice = choose(candidate(), [snapshot(policy_name="other"), snapshot(NEW, namespace="o")])
    assert (choice.snapshot, choice.noteworthy) == (None, False)


def test_a_ready_snapshot_that_does_not_fit_is_explained_field_by_field() -> None:
    """The newest one's differences stand in the event."""
    choice = choose(candidate(pod(dnsPolicy="Default")), [snapshot()])
    assert choice.snapshot is None
    assert choice.noteworthy
    assert 'spec.dnsPolicy is "Default", saved with absent' in choice.reason


def test_groups_do_not_mix() -> None:
    """A Pod restores only from its own group, even from an older one."""
    grouped = policy(labels=("tenant",))
    mine = saved_at(OLD, "2026-01-01T10:00:00.000000Z")
    mine = replace(mine, metadata=replace(mine.metadata, labels={"tenant": "1"}))
    other = saved_at(NEW, "2026-01-02T10:00:00.000000Z")
    other = replace(other, metadata=replace(other.metadata, labels={"tenant": "2"}))
    asked = candidate(pod(labels={"app": "web", "tenant": "1"}), grouped)
    assert choose(asked, [mine, other]).snapshot == mine


# -- ps-name


def test_a_pin_takes_exactly_that_snapshot() -> None:
    """Even if a newer one fits."""
    old = saved_at(OLD, "2026-01-01T10:00:00.000000Z")
    new = saved_at(NEW, "2026-01-02T10:00:00.000000Z")
    assert choose(candidate(pinned(OLD)), [old, new]).snapshot == old


def test_an_empty_pin_never_restores_and_is_no_news() -> None:
    """The user asked for a cold start."""
    choice = choose(candidate(pinned("")), [snapshot()])
    assert (choice.snapshot, choice.noteworthy) == (None, False)


PINS = {
    "missing": ([], "does not exist"),
    "in another namespace": ([snapshot(OLD, namespace="other")], "does not exist"),
    "not ready": ([snapshot(OLD, is_ready=False)], "not ready (Uploading: 5 MB"),
    "damaged": ([snapshot(OLD, damage="pages.img")], "damaged: pages.img"),
    "of another spec": ([snapshot(OLD, capture=capture_of(pod(hostIPC=True)))], "spec.hostIPC"),
    "of another policy": ([snapshot(OLD, policy_name="old")], "under policy old"),
}


@pytest.mark.parametrize("what", PINS)
def test_a_pin_that_cannot_be_used_is_a_cold_start_with_a_reason(what: str) -> None:
    """Another snapshot that would fit is not taken instead."""
    snapshots, expected = PINS[what]
    choice = choose(candidate(pinned(OLD)), [*snapshots, snapshot(NEW)])
    assert choice.snapshot is None
    assert choice.noteworthy
    assert expected in choice.reason
    assert OLD in choice.reason


# -- which policy governs


def test_the_oldest_policy_governs_then_the_name_decides() -> None:
    """A new policy never takes a Pod away from a working one."""
    old = policy("z", created="2026-01-01T00:00:00Z")
    new = policy("a", created="2026-01-02T00:00:00Z")
    same = policy("b", created="2026-01-02T00:00:00Z")
    assert governing_policy(pod(), [new, same, old]) == old
    assert governing_policy(pod(), [same, new]) == new


def test_a_policy_governs_its_own_namespace_and_labels_only() -> None:
    """No policy at all is no error."""
    assert governing_policy(pod(), [policy(namespace="other")]) is None
    assert governing_policy(pod(labels={"app": "db"}), [policy()]) is None
    assert governing_policy(pod(), []) is None


def test_a_policy_that_is_being_deleted_governs_nothing() -> None:
    """New Pods start as if it were gone already."""
    going = policy()
    going = replace(going, metadata=replace(going.metadata, deletion_timestamp="2026"))
    assert governing_policy(pod(), [going]) is None


def test_a_static_pod_is_never_governed() -> None:
    """Its UID at the CRI is not the API's."""
    static = pod(annotations={MIRROR_ANNOTATION: "x"})
    assert governing_policy(static, [policy()]) is None


def test_all_policies_that_select_a_pod_are_ranked() -> None:
    """The first governs, the others are told."""
    old = policy("z", created="2026-01-01T00:00:00Z")
    new = policy("a", created="2026-01-02T00:00:00Z")
    other = policy("o", namespace="other")
    assert selecting_policies(pod(), [new, other, old]) == [old, new]


GROUPS = {"dots": "a..b", "an underscore": "a_b", "nothing": "", "63 characters": "x" * 63}


@pytest.mark.parametrize("what", GROUPS)
def test_a_group_never_becomes_part_of_a_path(what: str) -> None:
    """It stands in labels alone; the folder in the bucket is the snapshot's name."""
    grouped = policy(labels=("tenant",))
    member = pod(labels={"app": "web", "tenant": GROUPS[what]})
    made = Snapshot.parse(automatic_snapshot(OLD, member, grouped, identity="i", now=""))
    assert group_labels(made.metadata.labels, grouped) == {"tenant": GROUPS[what]}
    assert Location("b", "p").below(made.metadata.name).path == f"p/{OLD}"


def test_absent_group_labels_are_skipped() -> None:
    """A group is the exact set of labels that are there."""
    assert group_labels(
        pod(labels={"b": "2", "c": "3"}).metadata.labels, policy(labels=("a", "b"))
    ) == {"b": "2"}


def test_ready_outranks_nothing_but_true() -> None:
    """Unknown is not ready."""
    unknown = replace(snapshot(), conditions={READY: Condition(READY, "Unknown", "X")})
    assert not judge(candidate(), unknown).usable
