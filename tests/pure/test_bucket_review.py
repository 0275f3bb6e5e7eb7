# SPDX-License-Identifier: Apache-2.0
"""What is found about a bucket: each finding with its reason, and only what is fatal blocks."""

from dataclasses import replace
from typing import Any

import pytest

from policies.bucket_review import BucketFacts, Step, conditions_of, review_bucket
from schemas.names import AS_RECOMMENDED, READY
from schemas.storage_config import Location

GOOD = BucketFacts(
    Location("b", "team/snapshots"),
    bucket_location="EUROPE-WEST4",
    hierarchical_namespace=True,
    uniform_access=True,
    soft_delete_s=0.0,
    region="europe-west4",
    pod_side=dict.fromkeys((Step.CREATE, Step.GET, Step.DELETE), ""),
    own=dict.fromkeys((Step.LIST, Step.DELETE), ""),
)
# What is changed about a good bucket: the reason, whether it blocks, and words that must be told.
FAILED: dict[str, tuple[dict[str, Any], str, bool, tuple[str, ...]]] = {
    "no bucket": (
        {"missing": "bucket b does not exist; create it"},
        "BucketNotFound",
        True,
        ("bucket b cannot be written", "create it"),
    ),
    "no such name": (
        {"refused": "'..' is no name of a bucket"},
        "BucketNotWritable",
        True,
        ("cannot be written: '..'",),
    ),
    "no answer": (
        {"unreachable": "timed out"},
        "BucketNotWritable",
        True,
        ("is not reached: timed out", "tried again"),
    ),
    "no create": (
        {"pod_side": {Step.CREATE: "403"}},
        "ObjectCreateFailed",
        True,
        ("storage.objects.create", "gs://b/team/snapshots", "nothing can be saved", "gcloud"),
    ),
    "no get": (
        {"pod_side": {Step.GET: "403"}},
        "ObjectGetFailed",
        True,
        ("storage.objects.get", "nothing can be restored", "gcloud"),
    ),
    "no delete": (
        {"pod_side": {Step.DELETE: "403"}},
        "ObjectDeleteFailed",
        False,
        ("storage.objects.delete", "temporary parts", "gcloud"),
    ),
    "no list": (
        {"own": {Step.LIST: "403"}},
        "ListFailed",
        False,
        ("storage.objects.list", "the controller", "nothing is swept", "gcloud"),
    ),
    "no deletion": (
        {"own": {Step.DELETE: "403"}},
        "DeletionFailed",
        False,
        ("deleted PodSnapshots stay", "gcloud"),
    ),
    "no buckets.get": (
        {"may_not_describe": "403"},
        "BucketGetDenied",
        False,
        ("go in parallel", "roles/storage.bucketViewer"),
    ),
    "elsewhere": (
        {"bucket_location": "US-EAST1"},
        "LocationMismatch",
        False,
        ("us-east1", "europe-west4", "gcloud storage buckets create"),
    ),
    "another multi-region": ({"bucket_location": "US"}, "LocationMismatch", False, ("is in us",)),
    "beside its multi-region": (
        {"bucket_location": "EU", "region": "europe-west2"},
        "LocationMismatch",
        False,
        ("is in eu",),
    ),
    "a cluster built anew": (
        {"sweep_stopped": "3 whole snapshots have no PodSnapshot"},
        "SweepStopped",
        False,
        ("3 whole snapshots", "podsnap store import", "podsnap store gc"),
    ),
    "flat": (
        {"hierarchical_namespace": False},
        "NoHierarchicalNamespace",
        False,
        ("gcloud", "--location=europe-west4", "--soft-delete-duration=0"),
    ),
    "ACLs": ({"uniform_access": False}, "NoUniformAccess", False, ("an ACL", "gcloud")),
    "soft delete": (
        {"soft_delete_s": 604800.0},
        "SoftDeleteOn",
        False,
        ("for 7 days", "--clear-soft-delete"),
    ),
}


@pytest.mark.parametrize("what", FAILED)
def test_a_failed_check_has_its_reason_its_consequence_and_a_command(what: str) -> None:
    """One finding each; it blocks only what makes saves or restores impossible."""
    changes, reason, blocks, words = FAILED[what]
    (found,) = review_bucket(replace(GOOD, **changes))
    assert (found.reason, found.blocks) == (reason, blocks)
    assert [word for word in words if word not in found.message] == []


@pytest.mark.parametrize("step", [Step.CREATE, Step.GET])
def test_what_one_tenants_pod_lacks_stops_no_other(step: Step) -> None:
    """It is told by name, and saves and restores go on."""
    facts = replace(GOOD, pod_side={step: "403"}, pod_identity="team-a/shop")
    (found,) = review_bucket(facts)
    ready, advice = conditions_of(facts, (found,), 1)
    assert (ready.status, ready.reason) == ("True", "Ready")
    assert (advice.status, advice.reason) == ("False", found.reason)
    assert "failed for ServiceAccount team-a/shop: 403" in advice.message


def test_a_good_bucket_is_ready_and_as_recommended() -> None:
    """Nothing is found and nothing was left out."""
    ready, advice = conditions_of(GOOD, review_bucket(GOOD), 3)
    assert (ready.type, ready.status, ready.reason) == (READY, "True", "Ready")
    assert ready.message == "gs://b/team/snapshots is writable"
    assert (advice.type, advice.status) == (AS_RECOMMENDED, "True")
    assert ready.observed_generation == advice.observed_generation == 3


def test_a_multi_region_that_holds_the_cluster_is_no_other_region() -> None:
    """Its bytes are where the cluster is."""
    assert review_bucket(replace(GOOD, bucket_location="EU")) == ()


def test_a_directory_knows_no_settings_and_is_not_blamed_for_them() -> None:
    """What a store does not have is no finding."""
    bare = BucketFacts(GOOD.location, pod_side=GOOD.pod_side, own=GOOD.own)
    assert review_bucket(bare) == ()
    assert conditions_of(bare, (), 1)[1].status == "True"


def test_what_blocks_comes_first_and_makes_it_not_ready() -> None:
    """The rest is still told, beside it."""
    facts = replace(GOOD, pod_side={Step.CREATE: "403"}, soft_delete_s=1.0, uniform_access=False)
    ready, advice = conditions_of(facts, review_bucket(facts), 1)
    assert (ready.status, ready.reason) == ("False", "ObjectCreateFailed")
    assert (advice.status, advice.reason) == ("False", "NoUniformAccess,SoftDeleteOn")
    assert "ObjectCreateFailed" not in advice.reason


def test_what_costs_but_works_is_named_in_ready() -> None:
    """Who reads one condition alone learns that there is another."""
    facts = replace(GOOD, soft_delete_s=1.0)
    ready, _ = conditions_of(facts, review_bucket(facts), 1)
    assert (ready.status, ready.reason) == ("True", "Ready")
    assert f"see {AS_RECOMMENDED}: SoftDeleteOn" in ready.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pod_side": None}, "the Pods' own identity"),
        ({"region": ""}, "--region"),
    ],
    ids=["no Pod to act as", "no region"],
)
def test_what_was_not_looked_at_is_told_and_is_no_finding(
    changes: dict[str, Any], words: str
) -> None:
    """Nothing is found, and nobody says that all is well."""
    facts = replace(GOOD, **changes)
    ready, advice = conditions_of(facts, review_bucket(facts), 1)
    assert review_bucket(facts) == ()
    assert ready.status == "True"
    assert words in ready.message
    assert (advice.status, advice.reason) == ("Unknown", "NotChecked")


def test_a_store_that_names_the_command_is_not_repeated() -> None:
    """Its text has the very member; ours has a word for it."""
    said = "403; gcloud storage buckets add-iam-policy-binding gs://b --member=user:a"
    (found,) = review_bucket(replace(GOOD, own={Step.LIST: said}))
    assert found.message.count("gcloud") == 1
