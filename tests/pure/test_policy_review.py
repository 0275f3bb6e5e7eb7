# SPDX-License-Identifier: Apache-2.0
"""What stands in a policy's ``Ready``: its mistakes, and what it selects."""

from dataclasses import replace
from typing import Any

import pytest
from api_objects import FAILURE, NODE, capture_of, pod, policy, snapshot

from policies.policy_review import PolicyFacts, invitations, review
from schemas.metadata import Metadata
from schemas.names import (
    GATE_ANNOTATION,
    IDENTITY_LABEL,
    ORIGIN_POD_ANNOTATION,
    SAVE_SELECTOR_ANNOTATION,
)
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.policy_options import PolicyOptions
from schemas.selectors import LabelSelector
from schemas.snapshot import Snapshot
from schemas.storage_config import Location, StorageConfig

STORE = StorageConfig(Metadata(name="store"), Location("b"))
ALL_MAY = PolicyOptions(save_from=LabelSelector())
WORKS = "Pods that it selects are saved and restored"
HOOKED = [{"name": "main", "image": "i", "lifecycle": {"preStop": {"exec": {}}}}]


def facts(of: Policy | None = None, *pods: Pod, **more: Any) -> PolicyFacts:  # noqa: ANN401 - fields
    """Return a policy with its Pods and a bucket that works."""
    under = of or replace(policy(), options=ALL_MAY)
    base = PolicyFacts(under, STORE, pods, (under,), gvisor_classes={"gvisor"})
    return replace(base, **more)


def wrong_gate() -> Policy:
    """Return a policy with an annotation that cannot be read."""
    return replace(policy(), options=PolicyOptions.parse({GATE_ANNOTATION: "soon"}))


def spent(name: str) -> Snapshot:
    """Return a failed generation of one identity."""
    found = snapshot(name, capture=replace(capture_of(pod()), failure=FAILURE), is_ready=False)
    metadata = replace(
        found.metadata,
        labels={IDENTITY_LABEL: "i"},
        annotations={ORIGIN_POD_ANNOTATION: "web-9"},
    )
    return replace(found, metadata=metadata)


WRONG: dict[str, tuple[PolicyFacts, str, str]] = {
    "a combination that cannot be": (
        facts(policy(trigger="workload", snapshotScope="rootfs-only")),
        "Unsupported",
        "use snapshotScope whole-pod",
    ),
    "an annotation that cannot be read": (
        facts(wrong_gate()),
        "InvalidAnnotation",
        "annotation podsnap.dev/gate: 'soon' is not a duration; write it like 30s, 5m or 1h30m; "
        "meanwhile the default holds, or the strictest if it protects something",
    ),
    "no storage config": (
        facts(storage=None),
        "StorageNotReady",
        "saves and restores wait: PodSnapshotStorageConfig store does not exist; create it",
    ),
    "a storage config of others": (
        facts(
            storage=replace(
                STORE, metadata=Metadata("store", annotations={"podsnap.dev/namespaces": "x"})
            )
        ),
        "StorageNotAllowed",
        "may not be used by namespace shop",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_policy_that_cannot_work_is_not_ready(what: str) -> None:
    """With the reason and what to do."""
    given, reason, message = WRONG[what]
    condition = review(given)
    assert (condition.status, condition.reason) == ("False", reason)
    assert message in condition.message


OLD = policy("old", created="2025-01-01T00:00:00Z")
YOUNG = policy("young", created="2026-06-01T00:00:00Z")
TWIN = policy("twin", created="2025-01-01T00:00:00Z")
PODS = tuple(pod(f"web-{n}") for n in range(5))
PARTING = policy(trigger="onDelete")

GOLDEN = replace(policy(), options=PolicyOptions.parse({SAVE_SELECTOR_ANNOTATION: "role=golden"}))
NOTES: dict[str, tuple[PolicyFacts, str]] = {
    "one Pod": (facts(None, pod()), ""),
    "no Pod": (facts(), "no Pod is selected now"),
    "Pods of others": (facts(None, pod(labels={"app": "db"})), "no Pod is selected now"),
    "a Pod that is over": (facts(None, replace(pod(), phase="Failed")), "no Pod is selected now"),
    "a selector that is empty": (
        facts(policy(selector={}), pod()),
        "warning: its selector is empty, so it selects every Pod of the namespace",
    ),
    "an older policy for its Pod": (
        facts(YOUNG, pod(), policies=(YOUNG, OLD)),
        "Pod web-0 is governed by policy old, which is older",
    ),
    "a younger policy for its Pod": (
        facts(OLD, pod(), policies=(YOUNG, OLD)),
        "Pod web-0 is selected by policy young too, which does not govern: old is older",
    ),
    "an equally old policy for its Pod": (
        facts(TWIN, pod(), policies=(TWIN, OLD)),
        "Pod web-0 is governed by policy old, which comes first by name, being as old",
    ),
    "an older policy for all of its Pods": (
        facts(YOUNG, *PODS, policies=(YOUNG, OLD)),
        "Pods web-0, web-1, web-2 and 2 more are governed by policy old, which is older",
    ),
    "a Pod that cannot be saved": (
        facts(None, pod(hostNetwork=True)),
        "Pod web-0 is never saved: a Pod with hostNetwork cannot be restored",
    ),
    "two Pods outside gVisor": (
        facts(None, pod("a", runtimeClassName=None), pod("b", runtimeClassName="runc")),
        "Pods a, b are never saved: not in gVisor; set runtimeClassName: gvisor",
    ),
    "a Pod on an E2 machine": (
        facts(None, pod(), nodes={"node-1": replace(NODE, machine_series="e2")}),
        "Pod web-0 is never saved: its node is an E2 machine",
    ),
    "a preStop hook and a save at the end": (
        facts(PARTING, pod("a", containers=HOOKED), pod("b")),
        "warning: Pod a is saved after the preStop hook has run",
    ),
    "a preStop hook and a save by hand": (facts(None, pod(containers=HOOKED)), ""),
    "an identity that was given up": (
        facts(policy(trigger="readinessProbe"), pod(), snapshots=[spent(n) for n in "abc"]),
        "no more saves are tried for Pods like web-9, because 3 failed",
    ),
    "a policy under which anybody may be saved": (
        facts(policy(), pod()),
        "warning: any Pod that it selects may be saved, and its live sessions become every new",
    ),
    "a Pod that may not be saved for all others": (
        facts(GOLDEN, pod("gold", labels={"app": "web", "role": "golden"}), pod()),
        "Pod web-0 is never saved: its labels do not match the policy's annotation "
        "podsnap.dev/save-selector, so it may be restored",
    ),
    "two failures": (
        facts(policy(trigger="readinessProbe"), pod(), snapshots=[spent(n) for n in "ab"]),
        "",
    ),
    "three failures under another policy": (
        facts(
            policy("other", trigger="readinessProbe"),
            pod(),
            snapshots=[spent(n) for n in "abc"],
        ),
        "",
    ),
}


@pytest.mark.parametrize("what", NOTES)
def test_a_policy_that_works_tells_what_it_selects(what: str) -> None:
    """``Ready`` stays true: none of it is wrong by itself."""
    given, note = NOTES[what]
    condition = review(given)
    assert (condition.status, condition.reason) == ("True", "Ready")
    assert condition.message.startswith(f"{WORKS}; {note}" if note else WORKS)
    assert bool(note) is (condition.message != WORKS)


INVITED: dict[str, tuple[Policy, bool]] = {
    "by hand": (policy(), True),
    "by the program": (policy(trigger="workload"), True),
    "at the end": (policy(trigger="onDelete"), True),
    "files alone": (policy(snapshotScope="rootfs-only"), True),
    "before anybody is served": (policy(trigger="readinessProbe"), False),
    "each group for itself": (policy(labels=("tenant",)), False),
    "from golden Pods alone": (GOLDEN, False),
}


@pytest.mark.parametrize("what", INVITED)
def test_a_live_session_may_become_everyones_start_only_with_a_warning(what: str) -> None:
    """Memory holds whatever its users did; the warning says how to keep it to themselves."""
    under, invited = INVITED[what]
    assert bool(invitations(under)) is invited
