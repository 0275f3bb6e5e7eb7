# SPDX-License-Identifier: Apache-2.0
"""Every name that stands in an API object, once.

A name here is a promise: clients written for GKE match on these strings. Anything that GKE does
not define lives under ``podsnap.dev``, so that it can never be mistaken for a field of theirs.
"""

from typing import Final

GROUP: Final = "podsnapshot.gke.io"
VERSION: Final = "v1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

OWN_GROUP: Final = "podsnap.dev"
OWN_API_VERSION: Final = f"{OWN_GROUP}/v1alpha1"

# -- labels and annotations of the contract
PS_NAME_ANNOTATION: Final = f"{GROUP}/ps-name"
ORIGIN_POD_ANNOTATION: Final = f"{GROUP}/origin-pod"
ORIGIN_NODE_ANNOTATION: Final = f"{GROUP}/origin-node"
TRIGGERED_BY_LABEL: Final = "gke-pod-snapshot-triggered-by"
FINALIZER: Final = f"{GROUP}/podsnapshot-finalizer"

# -- labels and annotations of our own
ORIGIN_POD_UID_ANNOTATION: Final = f"{OWN_GROUP}/origin-pod-uid"
TRIGGER_UID_ANNOTATION: Final = f"{OWN_GROUP}/trigger-uid"
TRIGGER_TYPE_ANNOTATION: Final = f"{OWN_GROUP}/trigger-type"
# On a PodSnapshot that was imported: under which UID its bytes were stored.
STORED_UID_ANNOTATION: Final = f"{OWN_GROUP}/stored-uid"
GIT_SOURCE_ANNOTATION: Final = f"{OWN_GROUP}/git-source"
GIT_REVISION_ANNOTATION: Final = f"{OWN_GROUP}/git-revision"
GIT_SOURCE_FINALIZER: Final = f"{OWN_GROUP}/git-source-finalizer"
# Which commit brought the policy of a snapshot, and when (schemas.policy_origin).
POLICY_ORIGIN_ANNOTATION: Final = f"{OWN_GROUP}/policy-origin"
# W3C trace context of a snapshot's save; also the mark that its spans were handed over.
TRACEPARENT_ANNOTATION: Final = f"{OWN_GROUP}/traceparent"
# metadata.creationTimestamp has whole seconds, too coarse for the story of a save.
CREATED_AT_ANNOTATION: Final = f"{OWN_GROUP}/created-at"
ORIGIN_NODE_LABEL: Final = f"{OWN_GROUP}/origin-node"
# As which ServiceAccount the saved Pod runs, once the controller saw it.
SERVICE_ACCOUNT_ANNOTATION: Final = f"{OWN_GROUP}/service-account"
IDENTITY_LABEL: Final = f"{OWN_GROUP}/identity"
NODE_FACTS_ANNOTATION: Final = f"{OWN_GROUP}/node-facts"
# On the leader's Lease: the mark that this cluster puts on its objects in buckets.
CLUSTER_ID_ANNOTATION: Final = f"{OWN_GROUP}/cluster-id"

# What Argo CD tracks by, where it was told to track by label.
ARGO_INSTANCE_LABEL: Final = "app.kubernetes.io/instance"

# -- what users set to get more than the contract has
GATE_ANNOTATION: Final = f"{OWN_GROUP}/gate"
PROBE_BUDGET_ANNOTATION: Final = f"{OWN_GROUP}/probe-budget"
NAMESPACES_ANNOTATION: Final = f"{OWN_GROUP}/namespaces"
QUARANTINE_ANNOTATION: Final = f"{OWN_GROUP}/quarantine"
QUARANTINE_LIFTED: Final = "lifted"
SAVE_SELECTOR_ANNOTATION: Final = f"{OWN_GROUP}/save-selector"
STRICT_IDENTITY_ANNOTATION: Final = f"{OWN_GROUP}/strict-identity"
KEEP_LAST_ANNOTATION: Final = f"{OWN_GROUP}/keep-last"
OBSOLETE_TTL_ANNOTATION: Final = f"{OWN_GROUP}/obsolete-ttl"
REQUESTED_AT_ANNOTATION: Final = f"{OWN_GROUP}/requestedAt"
ALLOW_PRUNE_ANNOTATION: Final = f"{OWN_GROUP}/allow-prune"
BACKGROUND_LOADING_ANNOTATION: Final = f"{OWN_GROUP}/background-loading"
COMPRESSION_ANNOTATION: Final = f"{OWN_GROUP}/compression"
REQUIRE_SIGNATURE_ANNOTATION: Final = f"{OWN_GROUP}/require-signature"
# On a PodSnapshot that is being deleted: let it go though its bytes cannot be.
ABANDON_BYTES_ANNOTATION: Final = f"{OWN_GROUP}/abandon-bytes"

# -- field managers (who writes what: ARCHITECTURE.md, section 2)
CONTROLLER_MANAGER: Final = "podsnap-controller"
CAPTURE_MANAGER: Final = "podsnap-capture"
ACCESS_MANAGER: Final = "podsnap-access"
# Apart from access: two nodes share each, and an apply removes what it leaves out.
DAMAGE_MANAGER: Final = "podsnap-damage"
GITSOURCE_MANAGER: Final = "podsnap-gitsource"
AGENT_MANAGER: Final = "podsnap-agent"
# Apart from PodRestored: each is written and removed at its own time.
PAGES_MANAGER: Final = "podsnap-pages"

# -- conditions
CHECKPOINT: Final = "Checkpoint"
STORAGE_REPLICATED: Final = "StorageReplicated"
READY: Final = "Ready"
# On a storage config, beside Ready: nothing about the bucket costs time, money or clean-up.
AS_RECOMMENDED: Final = f"{OWN_GROUP}/AsRecommended"
# Beside Ready on a GitSource, as kstatus reads them: there only while they are true.
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
TRIGGERED: Final = "Triggered"
POD_RESTORED: Final = "PodRestored"
# On a Pod that runs before all of its memory is on the node.
PAGES_LOCAL: Final = f"{OWN_GROUP}/PagesLocal"

# -- the event of the contract, always on the Pod
EVENT_REASON: Final = "GKEPodSnapshotting"

# RuntimeClass handlers that mean gVisor: upstream's name, and GKE's.
GVISOR_HANDLERS: Final = frozenset({"runsc", "gvisor"})
SYSTEM_NAMESPACE: Final = "podsnap-system"
CONTROLLER_SERVICE_ACCOUNT: Final = "podsnap-controller"
AGENT_SERVICE_ACCOUNT: Final = "podsnap-agent"
NODE_LEASE_PREFIX: Final = "podsnap-node-"
