# SPDX-License-Identifier: Apache-2.0
"""Access tokens of Google Cloud: a Kubernetes identity exchanged for one, or one made smaller.

Only the controller asks for these. The trap: each step fails for a reason of its own (the pool does
not know the cluster, the principal may not impersonate, the credentials may not be read), and all
of them say "403"; so each error names its step and the command that grants what is missing.
"""

import functools
import json
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, Final

import google.auth
import google.auth.exceptions
import tenacity
from google.auth import downscoped, transport
from google.auth.credentials import Credentials
from google.auth.transport.requests import Request
from google.oauth2 import sts

from backends.clock import Clock
from backends.objects.access_token import AccessToken
from backends.objects.interface import PermissionDenied, StoreError, StoreUnavailable
from backends.objects.workload_identity import WorkloadIdentity
from schemas.storage_config import Location
from schemas.token_request import Role

# Cloud Storage's own scope that also lets IAM impersonate.
_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_GRANT: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type's name
_TIMEOUT_S: Final = 5.0
_ATTEMPTS: Final = 3
# No other attempt begins so long after the first, so that a token, which is two requests at most,
# is there within 15 s or not at all.
_ATTEMPTS_LIMIT_S: Final = 2.5
_LIFE_S: Final = 3600
_OWN_MARGIN_S: Final = 900.0
_OK, _TOO_MANY, _SERVER_ERROR = 200, 429, 500
_ERROR_LIMIT: Final = 500
_SECRET: Final = re.compile(r"(?:ya29\.|eyJ)[\w.-]+")  # a token, should a server send ours back
# What a downscoped token may do with the snapshot's own folder. None may list.
_ROLES: Final[Mapping[Role, str]] = {
    Role.CHECKPOINT: "roles/storage.objectUser",
    Role.RESTORE: "roles/storage.objectViewer",
}


class _BusyError(Exception):
    """An answer after which the same question may be asked once more."""


class TokenExchange:
    """Google's Security Token Service and IAM credentials, asked with bounds. For many threads."""

    def __init__(
        self,
        identity: WorkloadIdentity,
        clock: Clock,
        *,
        own: Callable[[], Credentials] | None = None,
    ) -> None:
        """``own`` finds the controller's credentials; default: Application Default Credentials."""
        self._identity = identity
        self._clock = clock
        self._find_own = own or _application_default
        self._own: Credentials | None = None
        self._lock = threading.Lock()
        self._sts = sts.Client(f"{identity.sts_url}/v1/token")  # type: ignore[no-untyped-call] # google-auth's are

    def federated(
        self, kubernetes_token: str, *, namespace: str, account: str, impersonate: str = ""
    ) -> AccessToken:
        """Exchange a Kubernetes token for an access token, of a service account if one is named.

        Raises:
            PermissionDenied: the pool or IAM refuses; the text names the binding that is missing.
            StoreUnavailable: there is no answer.
        """
        principal = self._identity.principal(namespace, account)
        hint = (
            f"the workload identity provider {self._identity.provider} does not take tokens of "
            f"this cluster for ServiceAccount {namespace}/{account}; check its issuer and allowed "
            "audiences with `gcloud iam workload-identity-pools providers describe`"
        )
        token = self._exchange(
            hint,
            kubernetes_token,
            _JWT,
            audience=self._identity.provider,
            scopes=_SCOPES,
        )
        return self._impersonated(token, impersonate, principal) if impersonate else token

    def downscoped(self, location: Location, role: Role) -> AccessToken:
        """Return the controller's own right on one folder of a bucket, and nothing beyond.

        Raises:
            PermissionDenied: the controller has no credentials, or they cannot be made smaller.
            StoreUnavailable: there is no answer.
        """
        own = self._own_token()
        hint = (
            "the controller's credentials cannot be restricted to a folder; use credentials of a "
            "service account that has roles/storage.objectUser on the bucket"
        )
        return self._exchange(
            hint,
            own.value,
            _ACCESS_TOKEN,
            boundary=_boundary(location, role),
            inherited_expires_s=own.expires_s,
        )

    def _exchange(
        self,
        hint: str,
        subject_token: str,
        kind: str,
        *,
        audience: str | None = None,
        scopes: tuple[str, ...] = (),
        boundary: Mapping[str, Any] | None = None,
        inherited_expires_s: float = 0.0,
    ) -> AccessToken:
        asked_s = self._now_s()
        try:
            answer = self._sts.exchange_token(  # type: ignore[no-untyped-call] # google-auth's are
                _Bounded(hint),
                _GRANT,
                subject_token,
                kind,
                audience=audience,
                scopes=scopes,
                requested_token_type=_ACCESS_TOKEN,
                additional_options=boundary,
            )
            life_s = answer.get("expires_in")
            ends_s = asked_s + float(life_s) if life_s else inherited_expires_s
            return AccessToken(answer["access_token"], ends_s)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"{self._identity.sts_url} gave an answer without a token ({type(error).__name__})"
            ) from None

    def _impersonated(self, token: AccessToken, email: str, principal: str) -> AccessToken:
        asked_s = self._now_s()
        hint = (
            f"{principal} may not impersonate {email} (iam.serviceAccounts.getAccessToken); grant "
            f"it: gcloud iam service-accounts add-iam-policy-binding {email} "
            f"--role=roles/iam.workloadIdentityUser --member='{principal}'"
        )
        url = f"{self._identity.iam_url}/v1/projects/-/serviceAccounts/{email}:generateAccessToken"
        response = _Bounded(hint)(
            url,
            "POST",
            body=json.dumps({"scope": list(_SCOPES), "lifetime": f"{_LIFE_S}s"}).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {token.value}",
            },
        )
        try:
            answer = json.loads(response.data)
            value = str(answer["accessToken"])
        except (KeyError, TypeError, ValueError):
            raise StoreError(f"{self._identity.iam_url} gave an answer without a token") from None
        # Their expireTime is by their clock, and ours may be ahead by more than is left.
        return AccessToken(value, asked_s + _LIFE_S)

    def _own_token(self) -> AccessToken:
        with self._lock:
            try:
                if self._own is None:
                    self._own = self._find_own()
                expires_s = _expires_s(self._own)
                if not self._own.token or expires_s - self._now_s() < _OWN_MARGIN_S:
                    self._own.refresh(functools.partial(Request(), timeout=_TIMEOUT_S))  # type: ignore[no-untyped-call] # google-auth's are
                    expires_s = _expires_s(self._own)
            except google.auth.exceptions.TransportError as error:
                raise StoreUnavailable(
                    f"the controller's own credentials cannot be renewed: {_first_line(error)}"
                ) from None
            except google.auth.exceptions.GoogleAuthError as error:
                raise PermissionDenied(
                    f"the controller has no credentials of its own ({_first_line(error)}); give it "
                    "Application Default Credentials (docs/bucket-identity.md)"
                ) from None
            return AccessToken(str(self._own.token), expires_s)

    def _now_s(self) -> float:
        return self._clock.now().timestamp()


class _Bounded(transport.Request):
    """One HTTP request as google-auth makes them: with a time-out, few retries, and our errors."""

    def __init__(self, hint: str) -> None:
        """``hint`` is said where the answer is a refusal."""
        self._hint = hint

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **_: Any,  # noqa: ANN401 - what google-auth hands through
    ) -> Any:  # noqa: ANN401 - a google.auth.transport.Response
        host = url.split("/v1/", maxsplit=1)[0]
        send = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_ATTEMPTS)
            | tenacity.stop_after_delay(_ATTEMPTS_LIMIT_S),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=2.0),
            retry=tenacity.retry_if_exception_type(_BusyError),
            reraise=True,
        )
        try:
            response = send(self._once, url, method, body, headers, timeout or _TIMEOUT_S)
        except _BusyError as error:
            raise StoreUnavailable(f"{host} gives no token: {error}; ask again later") from None
        if response.status != _OK:
            raise PermissionDenied(f"{self._hint} ({host} said: {_told(response)})")
        return response

    def _once(
        self,
        url: str,
        method: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Any:  # noqa: ANN401 - a google.auth.transport.Response
        try:
            response = Request()(url, method, body, headers, timeout_s)
        except google.auth.exceptions.TransportError as error:
            raise _BusyError(_first_line(error)) from None
        if response.status == _TOO_MANY or response.status >= _SERVER_ERROR:
            raise _BusyError(f"HTTP {response.status}")
        return response


def _boundary(location: Location, role: Role) -> dict[str, Any]:
    """Return the credential access boundary: one folder, and the bucket's own description."""
    bucket = f"projects/_/buckets/{location.bucket}"
    below = f"{location.path}/" if location.path else ""  # else all of the bucket
    folder = " || ".join(
        f"resource.name.startsWith({_cel(f'{bucket}/{kind}/{below}')})"
        for kind in ("objects", "folders")
    )
    resource = f"//storage.googleapis.com/{bucket}"
    rules = [
        downscoped.AccessBoundaryRule(  # type: ignore[no-untyped-call] # google-auth's are
            resource,
            [f"inRole:{_ROLES[role]}"],
            downscoped.AvailabilityCondition(folder),  # type: ignore[no-untyped-call] # google-auth's are
        )
    ]
    if role is Role.CHECKPOINT:  # storage.buckets.get, without which an upload is one stream
        rules.append(
            downscoped.AccessBoundaryRule(resource, ["inRole:roles/storage.bucketViewer"])  # type: ignore[no-untyped-call] # google-auth's are
        )
    made: dict[str, Any] = downscoped.CredentialAccessBoundary(rules).to_json()  # type: ignore[no-untyped-call] # google-auth's are
    return made


def _cel(text: str) -> str:
    """Return a string literal: JSON's are CEL's too, but for its pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _application_default() -> Credentials:
    found, _ = google.auth.default(scopes=_SCOPES)
    return found


def _expires_s(credentials: Credentials) -> float:
    expiry = credentials.expiry  # naive, in UTC
    return expiry.replace(tzinfo=UTC).timestamp() if expiry else 0.0


def _told(response: Any) -> str:  # noqa: ANN401 - a google.auth.transport.Response
    """Return what a refusal says, from either service's form of it."""
    try:
        found = json.loads(response.data)
        error = found.get("error")
        text = error.get("message") if isinstance(error, dict) else found.get("error_description")
    except (ValueError, AttributeError):
        text = ""
    return _SECRET.sub("…", f"HTTP {response.status} {text or ''}")[:_ERROR_LIMIT].strip()


def _first_line(error: Exception) -> str:
    text = str(error.args[0]) if error.args else ""
    line = (text.splitlines() or [type(error).__name__])[0]
    return _SECRET.sub("…", line)[:_ERROR_LIMIT]
