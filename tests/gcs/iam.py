# SPDX-License-Identifier: Apache-2.0
"""Who may do what: grants on a bucket or below a prefix (a managed folder), and bearer tokens.

The trap that this shows: a caller without ``storage.objects.list`` is not told that an object is
missing; Google answers 403, and names the permission to list.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.gcs.objects import ApiError

POD_PERMISSIONS = (
    "storage.objects.get",
    "storage.objects.create",
    "storage.objects.delete",
    "storage.folders.create",
)
_OBJECT_USER = (
    *POD_PERMISSIONS,
    "storage.objects.list",
    "storage.objects.update",
    "storage.folders.delete",
    "storage.folders.get",
    "storage.folders.list",
)
# What an access boundary may name; tests add custom roles.
ROLES = {
    "roles/storage.admin": ("storage.buckets.get", *_OBJECT_USER),
    "roles/storage.bucketViewer": ("storage.buckets.get",),
    "roles/storage.legacyBucketReader": ("storage.buckets.get", "storage.objects.list"),
    "roles/storage.legacyObjectReader": ("storage.objects.get",),
    "roles/storage.objectAdmin": _OBJECT_USER,
    "roles/storage.objectCreator": ("storage.objects.create", "storage.folders.create"),
    "roles/storage.objectUser": _OBJECT_USER,
    "roles/storage.objectViewer": ("storage.objects.get", "storage.objects.list"),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """Permissions on one bucket, or on what is below a prefix of it."""

    permissions: frozenset[str]
    bucket: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class BoundaryRule:
    """What a downscoped token is left: permissions on a bucket whose resource names begin so.

    ``names`` and ``lists`` are the prefixes of resource names and of listings; no names, no limit.
    """

    permissions: frozenset[str]
    bucket: str
    names: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()

    def covers(self, permission: str, bucket: str, kind: str, name: str) -> bool:
        """Tell whether it leaves a permission on an object, a folder or the bucket itself."""
        if permission not in self.permissions or bucket != self.bucket:
            return False
        if not self.names and not self.lists:
            return True
        if permission == "storage.objects.list":
            return any(name.startswith(prefix) for prefix in self.lists)
        resource = f"projects/_/buckets/{bucket}"
        if kind != "bucket":
            resource += f"/{kind}s/{name}"
        return any(resource.startswith(prefix) for prefix in self.names)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what of their rights the token carries."""

    principal: str
    boundary: tuple[BoundaryRule, ...] | None = None
    expires_s: float = 0.0


ANYONE = Caller("")


class Access:
    """Grants and tokens. With ``anonymous`` nobody is asked who they are."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.anonymous = True
        self._guard = threading.Lock()
        self._grants: dict[str, list[Grant]] = {}
        self._tokens: dict[str, Caller] = {}

    def allow(self, principal: str, *permissions: str, bucket: str, prefix: str = "") -> None:
        """Grant permissions on a bucket, or below a prefix; from now on everybody is asked."""
        with self._guard:
            self.anonymous = False
            grant = Grant(frozenset(permissions), bucket, prefix)
            self._grants.setdefault(principal, []).append(grant)

    def revoke(self, principal: str, *permissions: str) -> None:
        """Take permissions away wherever they were granted; all, if none is named."""
        with self._guard:
            kept = self._grants.get(principal, [])
            self._grants[principal] = [
                Grant(grant.permissions - set(permissions), grant.bucket, grant.prefix)
                for grant in (kept if permissions else ())
            ]

    def token(
        self,
        principal: str,
        *,
        valid_s: float = 3600,
        boundary: tuple[BoundaryRule, ...] | None = None,
    ) -> str:
        """Return a bearer token of a principal."""
        value = "ya29." + secrets.token_urlsafe(24)
        with self._guard:
            self._tokens[value] = Caller(principal, boundary, self.clock() + valid_s)
        return value

    def expire(self, principal: str) -> None:
        """End all tokens of a principal."""
        with self._guard:
            self._tokens = {t: c for t, c in self._tokens.items() if c.principal != principal}

    def principal_of(self, token: str) -> str:
        """Return whose token it is, empty if it is none."""
        with self._guard:
            return self._tokens[token].principal if token in self._tokens else ""

    def caller(self, authorization: str) -> Caller:
        """Return who sends a request with this header."""
        kind, _, value = authorization.partition(" ")
        return self.bearer(value) if kind == "Bearer" else ANYONE

    def bearer(self, token: str) -> Caller:
        """Return whose token it is, or say 401."""
        with self._guard:
            found = self._tokens.get(token)
        if found is None and self.anonymous:
            return ANYONE
        if found is None or found.expires_s <= self.clock():
            raise ApiError(401, "Invalid Credentials")
        return found

    def allows(self, caller: Caller, permission: str, bucket: str, kind: str, name: str) -> bool:
        """Tell whether a caller may do something; ``kind`` is object, folder, bucket."""
        if self.anonymous:
            return True
        with self._guard:
            grants = list(self._grants.get(caller.principal, ()))
        granted = any(
            permission in grant.permissions
            and grant.bucket == bucket
            and (not grant.prefix or (bool(name) and name.startswith(grant.prefix)))
            for grant in grants
        )
        left = caller.boundary is None or any(
            rule.covers(permission, bucket, kind, name) for rule in caller.boundary
        )
        return granted and left

    def demand(self, caller: Caller, permission: str, bucket: str, kind: str, name: str) -> None:
        """Refuse what a caller may not do, as Google words it."""
        if not self.allows(caller, permission, bucket, kind, name):
            who = caller.principal.removeprefix("serviceAccount:") or "Anonymous caller"
            what = "bucket" if permission == "storage.objects.list" else kind
            raise ApiError(
                403 if caller.principal else 401,
                f"{who} does not have {permission} access to the Google Cloud Storage {what}. "
                f"Permission '{permission}' denied on resource (or it may not exist).",
            )
