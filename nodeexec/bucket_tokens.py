# SPDX-License-Identifier: Apache-2.0
"""Tokens for one use of a bucket, asked of the controller and kept in memory.

The agent may mint nothing. It creates a PodSnapshotTokenRequest with a fresh public key, reads the
sealed answer and deletes the request, whatever came of it; what a dead process left, the controller
removes. Only what the controller has judged is final (``PermissionDenied``); whatever else goes
wrong is ``StoreUnavailable``, so that who asked tries again later and loses nothing. The trap:
clocks. How long a token lasts is counted from before it was asked for, by our own clock; a bucket
that refuses it all the same is right, and ``refused`` has another one fetched.
"""

import base64
import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from backends.clock import Clock
from backends.kube.client import POD_SNAPSHOT_TOKEN_REQUESTS, KubeClient
from backends.kube.errors import ApiError, NotFound
from backends.objects.access_token import AccessToken
from backends.objects.interface import PermissionDenied, StoreError, StoreUnavailable
from backends.token_sealing import OneTimeKey, SealError
from schemas.names import AGENT_MANAGER, API_VERSION, READY
from schemas.token_request import UNAVAILABLE, TokenRequest

if TYPE_CHECKING:
    from nodeexec.bucket_stores import BucketUse

log = logging.getLogger(__name__)

# Longer than it takes another controller to become leader.
ANSWER_LIMIT_S: Final = 40.0
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 0.5
_MARGIN_S: Final = 300.0
_MARGIN_SHARE: Final = 0.2
_USABLE_S: Final = 30.0
_FAILURE_S: Final = 3.0
# Too short to be tried again within one look.
_LOOK_LIMIT_S: Final = 2.5


@dataclass(slots=True)
class UseTokens:
    """The tokens of one use, one after the other: a ``TokenSource`` for many threads."""

    ask: Callable[[], AccessToken]
    clock: Clock
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _token: AccessToken | None = None
    _renew_s: float = 0.0
    _is_asking: bool = False
    _failure: StoreError | None = None
    _failed_s: float = 0.0

    def __call__(self) -> AccessToken:
        """Return a token that is good for a while yet.

        One caller asks. The others go on with the one that is there, or wait for the answer; if
        that is a failure, it is everybody's for some seconds.

        Raises:
            StoreError: the controller refuses one, or does not answer.
        """
        with self._changed:
            while (token := self._kept()) is None and self._is_asking:
                self._changed.wait()
            if token is not None:
                return token
            self._is_asking = True
        try:
            return self._renew()
        finally:
            with self._changed:
                self._is_asking = False
                self._changed.notify_all()

    def refused(self, token: AccessToken) -> None:
        """Drop a token that the bucket did not take (401); the next call asks for another one."""
        with self._changed:
            if self._token == token:
                self._token = None

    def is_over(self) -> bool:
        """Whether nothing is kept here that could be of use."""
        token = self._token
        return not self._is_asking and (token is None or self._now_s() >= token.expires_s)

    def _kept(self) -> AccessToken | None:
        """Return the token if it will do, ``None`` if this caller has to ask, or to wait."""
        token, now_s = self._token, self._now_s()
        if token is not None and (now_s < self._renew_s or (self._is_asking and self._is_usable())):
            return token
        failure = self._failure
        if failure is not None and self.clock.monotonic_s() - self._failed_s < _FAILURE_S:
            raise failure.with_traceback(None)
        return None

    def _is_usable(self) -> bool:
        return self._token is not None and self._token.expires_s - self._now_s() >= _USABLE_S

    def _renew(self) -> AccessToken:
        try:
            token = self.ask()
        except StoreError as error:
            with self._changed:
                if self._token is None or not self._is_usable():
                    self._token, self._failure = None, error
                    self._failed_s = self.clock.monotonic_s()
                    raise
                log.warning("a token could not be renewed, the old one is used on: %s", error)
                self._renew_s = self._now_s() + _USABLE_S
                return self._token
        # An answer may take most of a minute, so the time is another one by now.
        now_s = self._now_s()
        life_s = token.expires_s - now_s
        margin_s = min(max(_MARGIN_S, life_s * _MARGIN_SHARE), life_s / 2)
        with self._changed:
            self._token, self._renew_s = token, token.expires_s - margin_s
            self._failure = None
        return token

    def _now_s(self) -> float:
        return self.clock.now().timestamp()


@dataclass(slots=True)
class BucketTokens:
    """All tokens of a node. ``stopped`` ends every wait."""

    client: KubeClient
    node: str
    clock: Clock
    stopped: threading.Event = field(default_factory=threading.Event)
    _kept: dict[tuple[str, ...], UseTokens] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def source(self, use: "BucketUse") -> UseTokens:
        """Return the tokens of a use; equal uses share them."""
        key = (
            use.role,
            use.snapshot.metadata.uid,
            use.pod_uid,
            use.location.bucket,
            use.location.path,
        )
        with self._guard:
            self._kept = {k: s for k, s in self._kept.items() if k == key or not s.is_over()}
            if key not in self._kept:
                self._kept[key] = UseTokens(lambda: self._ask(use), self.clock)
            return self._kept[key]

    def _ask(self, use: "BucketUse") -> AccessToken:
        asked_s = self.clock.now().timestamp()
        key = OneTimeKey()
        body = {
            "apiVersion": API_VERSION,
            "kind": "PodSnapshotTokenRequest",
            "metadata": {
                # Nobody else can have this name, so a dead process's leftover is in no one's way.
                "name": f"{use.role}-{secrets.token_hex(10)}",
                "namespace": use.snapshot.metadata.namespace,
            },
            "spec": {
                "nodeName": self.node,
                "role": str(use.role),
                "snapshot": {"name": use.snapshot.metadata.name},
                "pod": {"name": use.pod_name, "uid": use.pod_uid},
                "publicKey": base64.b64encode(key.public).decode(),
            },
        }
        try:
            made = TokenRequest.parse(
                self.client.create(POD_SNAPSHOT_TOKEN_REQUESTS, body, field_manager=AGENT_MANAGER)
            )
        except ApiError as error:
            raise StoreUnavailable(f"no token could be asked for: {error}") from error
        try:
            return _opened(self._answer(made), key, asked_s)
        finally:
            self._remove(made)

    def _answer(self, made: TokenRequest) -> TokenRequest:
        ends_s = self.clock.monotonic_s() + ANSWER_LIMIT_S
        look_s, trouble = _FIRST_LOOK_S, ""
        while self.clock.monotonic_s() < ends_s:
            if self.clock.wait(self.stopped, look_s):
                raise StoreUnavailable("the agent ends; the next one asks for a token again")
            try:
                found = TokenRequest.parse(
                    self.client.get(
                        POD_SNAPSHOT_TOKEN_REQUESTS,
                        made.metadata.name,
                        namespace=made.metadata.namespace,
                        timeout_s=_LOOK_LIMIT_S,
                    )
                )
            except NotFound as error:
                raise StoreUnavailable(
                    "the request for a token was deleted by somebody else; another one is made "
                    "later"
                ) from error
            except ApiError as error:
                trouble = f" ({error})"
            else:
                if found.is_answered:
                    return found
            look_s = min(look_s * 1.5, _LAST_LOOK_S)
        raise StoreUnavailable(
            f"the controller gave no token within {ANSWER_LIMIT_S:.0f} s{trouble}; see that it runs"
        )

    def _remove(self, made: TokenRequest) -> None:
        metadata = made.metadata
        try:
            with contextlib.suppress(NotFound):
                self.client.delete(
                    POD_SNAPSHOT_TOKEN_REQUESTS,
                    metadata.name,
                    namespace=metadata.namespace,
                    uid=metadata.uid,
                )
        except ApiError as error:
            log.info("token request %s is left to the controller: %s", metadata, error)


def _opened(answer: TokenRequest, key: OneTimeKey, asked_s: float) -> AccessToken:
    ready = answer.conditions[READY]
    if not ready.is_true:
        refused = StoreUnavailable if ready.reason == UNAVAILABLE else PermissionDenied
        raise refused(f"{ready.reason}: {ready.message}")
    try:
        opened = json.loads(key.open(answer.sealed, context=answer.sealing_context))
        return AccessToken(str(opened["accessToken"]), asked_s + float(opened["expiresIn"]))
    except (SealError, ValueError, KeyError, TypeError):
        raise StoreUnavailable(
            "the answer to a request for a token cannot be opened; controller and agent should be "
            "of one release"
        ) from None
