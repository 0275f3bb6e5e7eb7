# SPDX-License-Identifier: Apache-2.0
"""Which node gets a token for which folder: a node that lies gets none that is not its own."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_objects import FAILURE, capture_of, pod, policy, snapshot

from policies.identity import parting_snapshot_name
from policies.token_grants import (
    SIGHTING_LIFE_S,
    SIGHTING_REFRESH_S,
    Grant,
    GrantFacts,
    Refusal,
    judge,
    new_sighting,
    sighting_of,
)
from schemas.conditions import Condition
from schemas.metadata import Metadata
from schemas.names import (
    ORIGIN_POD_UID_ANNOTATION,
    READY,
    SERVICE_ACCOUNT_ANNOTATION,
    TRIGGER_TYPE_ANNOTATION,
)
from schemas.pod import Pod
from schemas.snapshot import Snapshot
from schemas.storage_config import Location, StorageConfig
from schemas.token_request import Role, Sighting, TokenRequest

SAVED = pod("web-0", serviceAccountName="shop")
NEW = pod("web-1", serviceAccountName="shop")
NAME = "11111111-1111-5111-8111-111111111111"
HERE = Location("bucket-1", "snapshots").below(NAME)
CONFIG = StorageConfig(Metadata("store"), Location("bucket-1", "snapshots"))
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
AT = "2026-01-01T12:00:00Z"


def saving(**annotations: str) -> Snapshot:
    """Return a snapshot of ``SAVED`` that node-1 has claimed and not stored."""
    found = snapshot(NAME, is_ready=False, capture=replace(capture_of(SAVED), location=HERE))
    known = {ORIGIN_POD_UID_ANNOTATION: SAVED.metadata.uid, **annotations}
    return replace(found, metadata=replace(found.metadata, annotations=known))


def asking(role: Role, of: Pod, node: str = "node-1") -> TokenRequest:
    """Return a request as an agent writes it."""
    metadata = Metadata("r", "shop", "uid-r")
    return TokenRequest(metadata, node, role, NAME, of.metadata.name, of.metadata.uid)


SAVE = GrantFacts(asking(Role.CHECKPOINT, SAVED), saving(), SAVED, (policy(),), (CONFIG,), NOW)
STORED = snapshot(NAME, capture=replace(capture_of(SAVED), location=HERE))
RESTORE = GrantFacts(asking(Role.RESTORE, NEW), STORED, NEW, (policy(),), (CONFIG,), NOW)
SIGHTING = Sighting("shop", SAVED.metadata.uid, "node-1", AT)
SEEN = SIGHTING.to_annotation()
OBSOLETE = {READY: Condition(READY, "False", "Obsolete")}


def seen(text: str) -> GrantFacts:
    """Return what there is once the saved Pod has gone."""
    return replace(SAVE, pod=None, snapshot=saving(**{SERVICE_ACCOUNT_ANNOTATION: text}))


def claimed(**record: Any) -> Snapshot:  # noqa: ANN401 - fields of a CaptureRecord
    """Return the snapshot with another record of its save."""
    found = saving()
    assert found.capture is not None
    return replace(found, capture=replace(found.capture, **record))


def parting(name: str) -> GrantFacts:
    """Return what there is of a save that an agent asked for, of a Pod that parts."""
    found = claimed(location=Location("bucket-1", f"snapshots/{name}"))
    known = {**found.metadata.annotations, TRIGGER_TYPE_ANNOTATION: "onDelete"}
    named = replace(found.metadata, name=name, annotations=known)
    request = replace(SAVE.request, snapshot_name=name)
    return replace(SAVE, request=request, snapshot=replace(found, metadata=named))


def config_at(path: str) -> StorageConfig:
    """Return another storage config of the bucket."""
    return StorageConfig(Metadata("b"), Location("bucket-1", path))


def namesake(location: Location = HERE) -> Snapshot:
    """Return a snapshot of the same name in another namespace."""
    capture = replace(capture_of(SAVED), location=location)
    return snapshot(NAME, namespace="team-b", capture=capture)


def by_workload(**record: Any) -> Snapshot:  # noqa: ANN401 - fields of a CaptureRecord
    """Return a snapshot that any of several Pods may have filled."""
    found = claimed(**record)
    known = {TRIGGER_TYPE_ANNOTATION: "workload", ORIGIN_POD_UID_ANNOTATION: "uid-of-the-first"}
    return replace(found, metadata=replace(found.metadata, annotations=known))


@pytest.mark.parametrize(
    ("facts", "account", "ends_with_pod"),
    [
        pytest.param(SAVE, "shop", True, id="the saving node, for the saved Pod"),
        pytest.param(RESTORE, "shop", True, id="the node of a Pod to be restored"),
        pytest.param(seen(SEEN), "shop", False, id="of a Pod that is gone, if it was seen"),
        pytest.param(
            replace(SAVE, snapshot=by_workload()), "shop", True, id="of whichever Pod saved itself"
        ),
        pytest.param(
            replace(RESTORE, snapshot=replace(STORED, conditions=OBSOLETE)),
            "shop",
            True,
            id="of one that became obsolete meanwhile",
        ),
        pytest.param(replace(SAVE, pod=pod("web-0")), "default", True, id="as the default account"),
        pytest.param(
            replace(seen(SEEN), pod=SAVED, policies=()), "shop", True, id="though its policy went"
        ),
        pytest.param(
            replace(seen(SEEN), now=NOW + timedelta(seconds=SIGHTING_LIFE_S - 1)),
            "shop",
            False,
            id="of a Pod that is gone for hours",
        ),
        pytest.param(
            replace(SAVE, namesakes=(namesake(Location("bucket-2", HERE.path)),)),
            "shop",
            True,
            id="though another bucket has that name",
        ),
        pytest.param(
            replace(SAVE, configs=(CONFIG, config_at("snapshots/team-b"), config_at(""))),
            "shop",
            True,
            id="though other configs are around",
        ),
    ],
)
def test_a_node_gets_a_token_for_its_own_part(
    facts: GrantFacts,
    account: str,
    ends_with_pod: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Always for the snapshot's own folder."""
    grant = judge(facts)
    assert isinstance(grant, Grant)
    assert (grant.location, grant.service_account) == (HERE, account)
    assert (grant.bound_to is not None) == ends_with_pod


OTHER_NAMESPACE = replace(SAVED, metadata=replace(SAVED.metadata, namespace="team-b"))
POLICIES = (policy(), policy(namespace="team-b"))
ELSEWHERE = replace(NEW, spec={**NEW.spec, "nodeName": "node-2"})
OTHERS = replace(
    CONFIG, metadata=replace(CONFIG.metadata, annotations={"podsnap.dev/namespaces": "x"})
)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        pytest.param(replace(SAVE, snapshot=None), "SnapshotGone", id="no snapshot"),
        pytest.param(
            replace(SAVE, snapshot=replace(saving(), capture=None)), "NothingSaved", id="no claim"
        ),
        pytest.param(
            replace(SAVE, snapshot=claimed(node="node-2")), "NotTheSavingNode", id="another's save"
        ),
        pytest.param(
            replace(SAVE, request=asking(Role.CHECKPOINT, NEW), pod=NEW),
            "NotTheSavedPod",
            id="a save in another Pod's name",
        ),
        pytest.param(
            replace(
                SAVE,
                request=asking(Role.CHECKPOINT, NEW),
                pod=NEW,
                snapshot=claimed(pod_uid=NEW.metadata.uid),
            ),
            "NotTheSavedPod",
            id="a claim in another Pod's name",
        ),
        pytest.param(
            replace(
                SAVE,
                request=asking(Role.CHECKPOINT, ELSEWHERE),
                pod=ELSEWHERE,
                snapshot=by_workload(pod_uid=NEW.metadata.uid),
            ),
            "PodElsewhere",
            id="a claim for a Pod of another node",
        ),
        pytest.param(
            replace(SAVE, snapshot=by_workload(), policies=(policy("other"),)),
            "NotGoverned",
            id="a claim for a Pod of another policy",
        ),
        pytest.param(
            replace(SAVE, policies=()), "NotGoverned", id="the save of a Pod that none governs"
        ),
        pytest.param(
            replace(SAVE, pod=OTHER_NAMESPACE, policies=POLICIES),
            "NotGoverned",
            id="the save of another namespace's Pod",
        ),
        pytest.param(
            replace(seen(SEEN), misnamed=SAVED), "PodMisnamed", id="a Pod that lives is called gone"
        ),
        pytest.param(
            replace(seen(SEEN), now=NOW + timedelta(seconds=SIGHTING_LIFE_S)),
            "PodGone",
            id="it was seen too long ago",
        ),
        pytest.param(
            replace(SAVE, snapshot=claimed(failure=FAILURE)), "SaveFailed", id="a save that failed"
        ),
        pytest.param(
            replace(RESTORE, snapshot=replace(STORED, capture=claimed(failure=FAILURE).capture)),
            "SaveFailed",
            id="a restore of a save that failed",
        ),
        pytest.param(parting("team-b"), "NameMadeUp", id="a folder that an agent named"),
        pytest.param(parting(NAME), "NameMadeUp", id="another snapshot's name"),
        pytest.param(
            replace(SAVE, namesakes=(namesake(),)), "FolderShared", id="another namespace's folder"
        ),
        pytest.param(
            replace(RESTORE, namesakes=(namesake(),)),
            "FolderShared",
            id="a restore from another namespace's folder",
        ),
        pytest.param(
            replace(SAVE, configs=(CONFIG, config_at(HERE.path))),
            "FolderShared",
            id="another config's folder",
        ),
        pytest.param(
            replace(SAVE, configs=(CONFIG, config_at(f"{HERE.path}/team-b"))),
            "FolderShared",
            id="a folder above another config's",
        ),
        pytest.param(replace(SAVE, snapshot=STORED), "AlreadyStored", id="nothing left to store"),
        pytest.param(replace(SAVE, pod=None), "PodGone", id="a Pod that nobody saw"),
        pytest.param(
            seen(replace(SIGHTING, pod_uid="uid-other").to_annotation()),
            "PodGone",
            id="another Pod was seen",
        ),
        pytest.param(
            seen(replace(SIGHTING, node="node-2").to_annotation()),
            "PodGone",
            id="it was seen on another node",
        ),
        pytest.param(seen("shop"), "PodGone", id="what was seen cannot be read"),
        pytest.param(
            replace(RESTORE, request=asking(Role.RESTORE, NEW, node="node-2")),
            "PodElsewhere",
            id="a restore on another node",
        ),
        pytest.param(
            replace(RESTORE, pod=replace(NEW, spec={})), "PodElsewhere", id="a Pod without a node"
        ),
        pytest.param(
            replace(RESTORE, pod=replace(NEW, metadata=replace(NEW.metadata, uid="uid-next"))),
            "PodGone",
            id="a successor of the same name",
        ),
        pytest.param(
            replace(RESTORE, pod=replace(NEW, phase="Succeeded")), "PodGone", id="a Pod that ended"
        ),
        pytest.param(
            replace(RESTORE, policies=(policy("other"),)),
            "NotGoverned",
            id="another policy's snapshot",
        ),
        pytest.param(replace(RESTORE, policies=()), "NotGoverned", id="a Pod that none governs"),
        pytest.param(
            replace(RESTORE, snapshot=saving()), "NotStored", id="a snapshot in the making"
        ),
        pytest.param(replace(SAVE, configs=()), "StorageNotAllowed", id="no storage config"),
        pytest.param(
            replace(SAVE, configs=(OTHERS,)), "StorageNotAllowed", id="a bucket of other namespaces"
        ),
        pytest.param(
            replace(SAVE, snapshot=claimed(location=Location("bucket-1", f"prod/{NAME}"))),
            "StorageNotAllowed",
            id="a folder that the node made up",
        ),
        pytest.param(
            replace(SAVE, snapshot=claimed(location=Location("bucket-1", "snapshots/other"))),
            "StorageNotAllowed",
            id="another snapshot's folder",
        ),
    ],
)
def test_a_node_gets_no_token_for_what_is_not_its_own(facts: GrantFacts, reason: str) -> None:
    """The reason is one word, the message a sentence."""
    refusal = judge(facts)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert " " in refusal.message


def test_of_several_configs_with_one_folder_the_policys_decides() -> None:
    """How the token is made stands there."""
    first = replace(CONFIG, metadata=Metadata("a"), token_source="federatedP4SA")  # noqa: S106 - a mode
    for facts in (SAVE, seen(SEEN)):
        grant = judge(replace(facts, configs=(first, CONFIG)))
        assert isinstance(grant, Grant)
        assert grant.token_source == "podKSA"  # noqa: S105 - a mode


def test_the_save_of_a_parting_pod_is_called_as_it_is_called() -> None:
    """So an agent, who makes it, has no choice of a folder."""
    assert isinstance(judge(parting(parting_snapshot_name(SAVED.metadata.uid))), Grant)


@pytest.mark.parametrize(
    ("of", "by", "is_new"),
    [
        pytest.param(saving(), SAVED, True, id="the saved Pod on the saving node"),
        pytest.param(saving(**{SERVICE_ACCOUNT_ANNOTATION: SEEN}), SAVED, False, id="noted before"),
        pytest.param(saving(), None, False, id="a Pod that is gone"),
        pytest.param(saving(), NEW, False, id="another Pod"),
        pytest.param(saving(), OTHER_NAMESPACE, False, id="another namespace's Pod"),
        pytest.param(
            saving(),
            replace(SAVED, metadata=replace(SAVED.metadata, labels={})),
            False,
            id="a Pod that no policy governs",
        ),
        pytest.param(parting(NAME).snapshot, SAVED, False, id="a name that an agent made up"),
        pytest.param(claimed(failure=FAILURE), SAVED, False, id="a save that failed"),
        pytest.param(claimed(node="node-2"), SAVED, False, id="another node's claim"),
        pytest.param(STORED, SAVED, False, id="nothing left to store"),
    ],
)
def test_what_the_controller_sees_of_the_saved_pod_is_noted_once(
    of: Snapshot,
    by: Pod | None,
    is_new: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """By it the save of a Pod that has gone is still stored as whom it ran."""
    assert new_sighting(of, by, POLICIES, NOW) == (SIGHTING if is_new else None)


def test_a_pod_that_stays_is_noted_again_now_and_then() -> None:
    """Though its policy is gone; by it the bound is counted from when the Pod went."""
    noted = saving(**{SERVICE_ACCOUNT_ANNOTATION: SEEN})
    later = NOW + timedelta(seconds=SIGHTING_REFRESH_S)
    again = replace(SIGHTING, seen_at="2026-01-01T12:10:00Z")
    assert new_sighting(noted, SAVED, (), later) == again
    assert new_sighting(noted, SAVED, (), later - timedelta(seconds=1)) is None


def test_no_annotation_is_no_sighting() -> None:
    """Nor is one by somebody's hand that lacks a part."""
    assert sighting_of(saving()) is None
    texts = ("", "a", "a/b", "a/b/c", "a/b/c/d/e", "a//c/d")
    assert [Sighting.parse(text) for text in texts] == [None] * len(texts)
