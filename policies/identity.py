# SPDX-License-Identifier: Apache-2.0
"""Names that make creation the lock.

A manual save is named by its trigger, an automatic one by everything that makes two Pods
interchangeable. Whoever creates the name first has the save; a crash in between changes nothing,
because the next start derives the same name. PodSnapshot names are UUIDs by contract, so both are
version 5 UUIDs in a name space of our own.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Final

from schemas.policy import Policy
from schemas.snapshot import Compatibility, SpecIdentity

_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "podsnapshot.podsnap.dev")


def manual_snapshot_name(trigger_uid: str) -> str:
    """Name the PodSnapshot of a manual trigger."""
    return str(uuid.uuid5(_NAMESPACE, f"trigger/{trigger_uid}"))


def parting_snapshot_name(pod_uid: str) -> str:
    """Name the PodSnapshot of a Pod that is saved because it is deleted."""
    return str(uuid.uuid5(_NAMESPACE, f"parting/{pod_uid}"))


def automatic_identity(
    policy: Policy,
    identity: SpecIdentity,
    group: Mapping[str, str],
    compatibility: Compatibility,
) -> str:
    """Return the short identity (32 hex digits) that interchangeable Pods share.

    Files alone fit any Pod of the policy on any node (contract, 6.1).
    """
    memory = [] if policy.rootfs_only else [identity.hash, compatibility.to_object()]
    everything = json.dumps([policy.metadata.uid, dict(group), *memory], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()[:32]


def automatic_snapshot_name(automatic: str, generation: int) -> str:
    """Name the PodSnapshot of an identity; a terminal failure moves on to the next generation."""
    return str(uuid.uuid5(_NAMESPACE, f"identity/{automatic}/{generation}"))
