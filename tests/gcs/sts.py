# SPDX-License-Identifier: Apache-2.0
"""Google's Security Token Service and IAM Credentials, as far as podsnap asks them.

A Kubernetes service account's token becomes a federated one, any token can be narrowed by an access
boundary, and a principal that may do so gets one of a Google service account.
"""

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from tests.gcs.iam import ROLES, Access, BoundaryRule
from tests.gcs.objects import ApiError

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - the name of a type
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
LIFETIME_S = 3600
_PROVIDER = re.compile(r"//iam\.googleapis\.com/(projects/\d+/.*workloadIdentityPools/[^/]+)/.*")
_NAMES = re.compile(r"resource\.name\.startsWith\(\s*['\"]([^'\"]*)['\"]\s*\)")
_LISTS = re.compile(
    r"getAttribute\(\s*['\"]storage\.googleapis\.com/objectListPrefix['\"]\s*,\s*['\"]{2}\s*\)"
    r"\.startsWith\(\s*['\"]([^'\"]*)['\"]\s*\)"
)


class TokenError(ApiError):
    """A refusal in OAuth's form."""

    def body(self) -> dict[str, Any]:
        """Return the JSON that is sent."""
        error, _, description = self.message.partition(": ")
        return {"error": error, "error_description": description}


class TokenService:
    """Exchanges tokens; ``keys`` is a JWKS, without it signatures are not looked at."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.keys: dict[str, Any] | None = None
        self.issuer = ""
        self.lifetime_s = LIFETIME_S
        self._impersonators: set[tuple[str, str]] = set()

    def allow_impersonation(self, principal: str, email: str) -> None:
        """Grant ``roles/iam.workloadIdentityUser`` on a Google service account."""
        self._impersonators.add((principal, email))

    def exchange(self, asked: dict[str, str]) -> dict[str, Any]:
        """Answer ``POST /v1/token``; a refresh token is a principal's name."""
        valid_s: float = self.lifetime_s
        rules = None
        if asked.get("grant_type") == "refresh_token":
            principal = asked["refresh_token"]
        elif asked.get("grant_type") != EXCHANGE:
            raise TokenError(400, "unsupported_grant_type: only token-exchange and refresh_token")
        elif asked.get("subject_token_type") == ACCESS_TOKEN:
            caller = self.access.bearer(asked["subject_token"])
            principal, rules = caller.principal, caller.boundary
            if caller.principal:
                valid_s = min(valid_s, caller.expires_s - self.access.clock())
        else:
            principal = self._federated(asked["subject_token"], asked.get("audience", ""))
        if "options" in asked:  # google-auth quotes it once more
            boundary = json.loads(unquote(asked["options"]))["accessBoundary"]
            rules = tuple(map(_rule, boundary["accessBoundaryRules"]))
        return {
            "access_token": self.access.token(principal, valid_s=valid_s, boundary=rules),
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": int(valid_s),
        }

    def impersonate(self, authorization: str, email: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``generateAccessToken``."""
        caller = self.access.bearer(authorization.removeprefix("Bearer "))
        if (caller.principal, email) not in self._impersonators:
            raise ApiError(
                403,
                "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not "
                "exist).",
            )
        valid_s = float(str(asked.get("lifetime", f"{LIFETIME_S}s")).removesuffix("s"))
        expires = datetime.fromtimestamp(self.access.clock() + valid_s, UTC)
        return {
            "accessToken": self.access.token(f"serviceAccount:{email}", valid_s=valid_s),
            "expireTime": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _federated(self, token: str, audience: str) -> str:
        """Return the principal of a Kubernetes service account's token."""
        claims = self._claims(token)
        if self.issuer and claims.get("iss") != self.issuer:
            raise TokenError(400, "invalid_grant: The issuer does not match the provider's.")
        if claims.get("exp", 0) <= self.access.clock():
            raise TokenError(400, "invalid_grant: ID Token issued at ... is stale to sign-in.")
        given = claims.get("aud", [])
        audiences = {given} if isinstance(given, str) else set(given)
        subject = str(claims["sub"])
        if provider := _PROVIDER.fullmatch(audience):
            accepted = {audience, f"https:{audience}"}
            pool = provider[1]
        elif audience.startswith("identitynamespace:"):
            workload_pool = audience.split(":")[1]
            accepted = {workload_pool}
            pool = f"projects/1/locations/global/workloadIdentityPools/{workload_pool}"
            _, _, namespace, account = subject.split(":")
            subject = f"ns/{namespace}/sa/{account}"
        else:
            raise TokenError(400, 'invalid_request: Invalid value for "audience".')
        if not audiences & accepted:
            raise TokenError(
                400,
                "invalid_grant: The audience in ID Token "
                f"{sorted(audiences)} does not match the expected audience.",
            )
        return f"principal://iam.googleapis.com/{pool}/subject/{subject}"

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            head, body, signature = token.split(".")
            if self.keys is not None:
                _verify(self.keys, json.loads(_decoded(head)), f"{head}.{body}", signature)
            claims: dict[str, Any] = json.loads(_decoded(body))
        except (ValueError, KeyError, InvalidSignature) as error:
            raise TokenError(400, "invalid_grant: Invalid ID Token.") from error
        return claims


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _verify(keys: dict[str, Any], header: dict[str, Any], text: str, signature: str) -> None:
    for key in keys["keys"]:
        if key["kid"] == header["kid"]:
            modulus, exponent = (int.from_bytes(_decoded(key[part]), "big") for part in "ne")
            public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
            public.verify(_decoded(signature), text.encode(), padding.PKCS1v15(), SHA256())
            return
    raise KeyError(header["kid"])


def _rule(asked: dict[str, Any]) -> BoundaryRule:
    roles = [role.removeprefix("inRole:") for role in asked["availablePermissions"]]
    if unknown := [role for role in roles if role not in ROLES]:
        raise TokenError(400, f"invalid_request: unknown role {unknown[0]}")
    expression = (asked.get("availabilityCondition") or {}).get("expression", "")
    return BoundaryRule(
        permissions=frozenset(p for role in roles for p in ROLES[role]),
        bucket=asked["availableResource"].rpartition("/")[2],
        names=tuple(_NAMES.findall(expression)),
        lists=tuple(_LISTS.findall(expression)),
    )
