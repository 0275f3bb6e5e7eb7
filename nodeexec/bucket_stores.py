# SPDX-License-Identifier: Apache-2.0
"""As whom this node reads and writes a bucket.

Not as itself: a node holds Pods of several tenants. Each use of a bucket is for one snapshot and
one Pod, and where the cluster is set up for it, by a token that the controller minted for just
that. Without, by the node's Application Default Credentials.
"""

from dataclasses import dataclass

from backends.objects.access_token import AccessToken
from backends.objects.factory import BucketAccess, open_store
from backends.objects.interface import ObjectStore
from nodeexec.bucket_tokens import BucketTokens
from schemas.snapshot import Snapshot
from schemas.storage_config import Location
from schemas.token_request import Role


@dataclass(frozen=True, slots=True)
class BucketUse:
    """What a bucket is opened for. ``pod_uid`` may be of a Pod that is gone by now."""

    location: Location
    role: Role
    snapshot: Snapshot
    pod_name: str
    pod_uid: str


@dataclass(slots=True)
class NodeStores:
    """The buckets as this node may use them."""

    access: BucketAccess
    tokens: BucketTokens | None = None

    def open(self, use: BucketUse) -> ObjectStore:
        """Open a bucket.

        Raises:
            StoreError: there are no credentials for this use; the text says what to do.
        """
        source = self.tokens.source(use) if self.tokens else None
        return open_store(use.location.bucket, self.access, tokens=source)

    def token_for(self, use: BucketUse) -> AccessToken | None:
        """Return a token for a program of the node that goes on without the agent.

        ``None`` where it is to use the node's own credentials.

        Raises:
            StoreError: the controller refuses one, or does not answer.
        """
        return self.tokens.source(use)() if self.tokens else None
