# SPDX-License-Identifier: Apache-2.0
"""Is a bucket fit for snapshots? What was seen of it goes in, findings for its owner come out.

A finding has one stable reason, says what was found and what follows, and brings the command that
mends it. Only what makes saves or restores impossible blocks; the rest costs time, money or
clean-up and is told. The trap: what could not be looked at is no finding, and not well either; so
it is named apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from schemas.conditions import Condition
from schemas.names import AS_RECOMMENDED, READY
from schemas.storage_config import Location

_ROLE: Final = "podSnapshotGcsReadWriter"
# Cloud Storage's multi-regions, and with what the names of their regions begin.
_MULTI_REGIONS: Final = {"eu": "europe-", "us": "us-", "asia": "asia-"}
_NOT_IN_EU: Final = frozenset({"europe-west2", "europe-west6"})


class Step(StrEnum):
    """What was tried in the bucket."""

    CREATE = "storage.objects.create"
    GET = "storage.objects.get"
    DELETE = "storage.objects.delete"
    LIST = "storage.objects.list"


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """What was seen. Texts are the store's own errors, empty where there was none.

    ``missing``, ``refused`` and ``unreachable`` leave nothing else to look at; ``may_not_describe``
    says that the settings are not known. ``pod_side`` and ``own`` have an entry for each step that
    was tried, as a Pod's identity and as the controller's; ``pod_side`` is ``None`` if there was no
    such identity to try with. ``pod_identity`` names the ServiceAccount that was tried; empty if it
    was not some tenant's, but what every Pod's tokens are made from. ``region`` is the cluster's,
    empty if not known; ``who`` a person who tried all of it instead of them; ``sweep_stopped`` why
    the sweep removes nothing.
    """

    location: Location
    missing: str = ""
    refused: str = ""
    unreachable: str = ""
    may_not_describe: str = ""
    bucket_location: str | None = None
    hierarchical_namespace: bool | None = None
    uniform_access: bool | None = None
    soft_delete_s: float | None = None
    region: str = ""
    pod_side: Mapping[Step, str] | None = None
    own: Mapping[Step, str] = field(default_factory=dict)
    pod_identity: str = ""
    who: str = ""
    sweep_stopped: str = ""


@dataclass(frozen=True, slots=True)
class BucketFinding:
    """One failed check: what was found, what follows, the command that mends it (or nothing)."""

    reason: str
    found: str
    consequence: str
    remedy: str = ""
    blocks: bool = False

    @property
    def message(self) -> str:
        """All of it in one line."""
        text = self.found if not self.consequence else f"{self.found}; {self.consequence}"
        # A store that refused has named the very command, with its member.
        return f"{text}; {self.remedy}" if self.remedy and "gcloud" not in self.found else text


def review_bucket(facts: BucketFacts) -> tuple[BucketFinding, ...]:
    """Judge a bucket; what blocks comes first."""
    bucket = facts.location.bucket
    if facts.missing:
        text = f"bucket {bucket} cannot be written: {facts.missing}"
        return (BucketFinding("BucketNotFound", text, "", blocks=True),)
    if facts.refused:
        text = f"bucket {bucket} cannot be written: {facts.refused}"
        return (BucketFinding("BucketNotWritable", text, "", blocks=True),)
    if facts.unreachable:
        text = f"bucket {bucket} is not reached: {facts.unreachable}"
        return (BucketFinding("BucketNotWritable", text, "it is tried again", blocks=True),)
    found = [*_rights(facts), *_settings(facts)]
    if facts.sweep_stopped:
        found.append(
            BucketFinding(
                "SweepStopped",
                facts.sweep_stopped,
                "nothing is removed, because the cluster may have been built anew",
                "podsnap store import CONFIG takes them over, podsnap store gc CONFIG removes them",
            )
        )
    return tuple(sorted(found, key=lambda f: not f.blocks))


def not_checked(facts: BucketFacts) -> tuple[str, ...]:
    """Say what could not be looked at."""
    if facts.missing or facts.refused or facts.unreachable:
        return ()
    unknown = []
    if facts.pod_side is None:
        unknown.append("the rights of the Pods' own identity (nobody here may act as a Pod)")
    if facts.bucket_location and not facts.region:
        unknown.append("the region of the cluster (no Node has one, and --region is not given)")
    if facts.may_not_describe:
        unknown.append("the settings of the bucket (storage.buckets.get)")
    return tuple(unknown)


def conditions_of(
    facts: BucketFacts, findings: Sequence[BucketFinding], generation: int
) -> tuple[Condition, ...]:
    """Return ``Ready``, and beside it whether all is as recommended."""
    blocking = [f for f in findings if f.blocks]
    advice = [f for f in findings if not f.blocks]
    unknown = not_checked(facts)
    if blocking:
        text = "; ".join(f.message for f in blocking)
        ready = Condition(READY, "False", blocking[0].reason, text, "", generation)
    else:
        notes = [f"{facts.location.url} is writable"]
        if advice:
            notes.append(f"see {AS_RECOMMENDED}: {', '.join(f.reason for f in advice)}")
        if unknown:
            notes.append(f"not checked: {', '.join(unknown)}")
        ready = Condition(READY, "True", "Ready", "; ".join(notes), "", generation)
    if advice:
        # A reason may name several things, with commas between them.
        reason, text = ",".join(f.reason for f in advice), ". ".join(f.message for f in advice)
        second = Condition(AS_RECOMMENDED, "False", reason, text, "", generation)
    elif blocking or unknown:
        text = f"not checked: {', '.join(unknown)}" if unknown else "the bucket cannot be used"
        second = Condition(AS_RECOMMENDED, "Unknown", "NotChecked", text, "", generation)
    else:
        text = "nothing is known that would be better otherwise"
        second = Condition(AS_RECOMMENDED, "True", "AsRecommended", text, "", generation)
    return ready, second


def _rights(facts: BucketFacts) -> list[BucketFinding]:
    bucket, url = facts.location.bucket, facts.location.url
    tried = facts.pod_side or {}
    pod, controller = facts.who or "a Pod's identity", facts.who or "the controller"
    # What one tenant's Pod lacks must not stop the others.
    blocks = not facts.pod_identity
    if facts.pod_identity:
        pod = f"ServiceAccount {facts.pod_identity}"
    pods = [
        BucketFinding(reason, f"{step} below {url} failed for {pod}: {text}", *rest)
        for step, reason, *rest in (
            (Step.CREATE, "ObjectCreateFailed", "nothing can be saved", _for_pods(bucket), blocks),
            (Step.GET, "ObjectGetFailed", "nothing can be restored", _for_pods(bucket), blocks),
            (
                Step.DELETE,
                "ObjectDeleteFailed",
                "the temporary parts of uploads stay until the sweep removes them",
                _for_pods(bucket),
            ),
        )
        if (text := tried.get(step))
    ]
    own = [
        BucketFinding(
            reason,
            f"{step} below {url} failed for {controller}: {text}",
            consequence,
            _for_controller(bucket),
        )
        for step, reason, consequence in (
            (
                Step.LIST,
                "ListFailed",
                "deleted PodSnapshots stay, with their bytes, and nothing is swept",
            ),
            (Step.DELETE, "DeletionFailed", "deleted PodSnapshots stay, with their bytes"),
        )
        if (text := facts.own.get(step))
    ]
    return [*pods, *own]


def _settings(facts: BucketFacts) -> list[BucketFinding]:
    bucket, place = facts.location.bucket, facts.bucket_location
    found = []
    if facts.may_not_describe:
        found.append(
            BucketFinding(
                "BucketGetDenied",
                f"the settings of bucket {bucket} may not be read ({facts.may_not_describe})",
                "it cannot be shown that uploads go in parallel, and they may be a single stream",
                f"gcloud storage buckets add-iam-policy-binding gs://{bucket} "
                "--role=roles/storage.bucketViewer --member=MEMBER",
            )
        )
    if place and facts.region and not _holds(place.lower(), facts.region.lower()):
        found.append(
            BucketFinding(
                "LocationMismatch",
                f"bucket {bucket} is in {place.lower()}, the cluster in {facts.region}",
                "every save and restore crosses regions, which is slower and is billed",
                f"gcloud storage buckets create gs://NAME --location={facts.region} "
                "--uniform-bucket-level-access --enable-hierarchical-namespace "
                "--soft-delete-duration=0, and name it in a new storage config",
            )
        )
    if facts.hierarchical_namespace is False:
        found.append(
            BucketFinding(
                "NoHierarchicalNamespace",
                f"bucket {bucket} has no hierarchical namespace",
                "it takes fewer requests in its first minutes, and rights on folders cost more "
                "care",
                "it is set only when a bucket is created: gcloud storage buckets create gs://NAME "
                f"--location={(facts.region or place or 'REGION').lower()} "
                "--uniform-bucket-level-access --enable-hierarchical-namespace "
                "--soft-delete-duration=0",
            )
        )
    if facts.uniform_access is False:
        found.append(
            BucketFinding(
                "NoUniformAccess",
                f"bucket {bucket} has no uniform bucket-level access",
                "an ACL on one object may let others read memory that was saved",
                f"gcloud storage buckets update gs://{bucket} --uniform-bucket-level-access",
            )
        )
    if facts.soft_delete_s:
        days = facts.soft_delete_s / 86400
        found.append(
            BucketFinding(
                "SoftDeleteOn",
                f"bucket {bucket} keeps deleted objects for {days:.3g} days",
                "deleted snapshots, and the parts of every upload, are paid for that long",
                f"gcloud storage buckets update gs://{bucket} --clear-soft-delete",
            )
        )
    return found


def _holds(place: str, region: str) -> bool:
    """Whether a bucket's location is the region, or a multi-region with it."""
    if region in _NOT_IN_EU and place == "eu":
        return False
    return place == region or region.startswith(_MULTI_REGIONS.get(place, "-"))


def _for_pods(bucket: str) -> str:
    return (
        f"gcloud storage buckets add-iam-policy-binding gs://{bucket} "
        "--role=roles/storage.objectUser --member=MEMBER, or on a managed folder of it a role "
        f"{_ROLE} with storage.objects.get, create and delete and storage.folders.create"
    )


def _for_controller(bucket: str) -> str:
    return (
        f"gcloud storage buckets add-iam-policy-binding gs://{bucket} "
        "--role=roles/storage.objectUser --member=MEMBER, for the controller's own identity"
    )
