# SPDX-License-Identifier: Apache-2.0
"""Where a repository is, and with what one gets in.

Both come from objects that people write. Credentials in an address would stand readable in every
``kubectl get``, and over http:// they would travel readable, so both are refused.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

from backends.git.errors import AuthenticationFailed, InvalidSource

_SCP_STYLE = re.compile(r"(?:(?P<user>[^@:/\s]+)@)?(?P<host>[^@:/\s]+):(?P<path>/?[^:/\s][^\s]*)")
_SCHEMES = frozenset({"https", "http", "ssh", "file"})


@dataclass(frozen=True, slots=True)
class Address:
    """A repository's address, taken apart. ``url`` is as it was written."""

    url: str
    scheme: str
    host: str
    port: int | None
    user: str | None
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read ``https://``, ``http://``, ``ssh://``, ``file://`` or ``git@host:path``.

        Raises:
            InvalidSource: it is none of these, or has credentials in it.
        """
        found = _SCP_STYLE.fullmatch(url)
        if "://" not in url and found:
            return cls(url, "ssh", found["host"], None, found["user"], found["path"])
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidSource(f"{url!r} is no address: {error}; mend spec.url") from error
        if parts.scheme not in _SCHEMES or not (parts.hostname or parts.scheme == "file"):
            raise InvalidSource(
                f"{url!r} is no address of a repository; write https://, ssh://, file:// or "
                "git@host:path into spec.url"
            )
        if parts.password is not None or (parts.username and parts.scheme != "ssh"):
            raise InvalidSource(
                "spec.url has credentials in it, which everybody can read who may read the "
                "GitSource; put them into a Secret, name it in spec.secretRef, and change them"
            )
        if parts.scheme == "file" and parts.netloc:
            raise InvalidSource(
                f"{url!r} names a host, and file:// is the controller's own disk; write "
                "file:///PATH into spec.url"
            )
        path = unquote(parts.path)
        return cls(url, parts.scheme, parts.hostname or "", port, parts.username, path)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a Secret holds for a repository, under Flux's keys. Never printed."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    bearer_token: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    known_hosts: str = field(default="", repr=False)
    authority: str = field(default="", repr=False)

    @classmethod
    def parse(cls, secret: Mapping[str, bytes]) -> Self:
        """Read the data of a Secret; keys that are not ours are left alone.

        Raises:
            AuthenticationFailed: a value is no text, or has what no header can carry.
        """

        def text(*keys: str) -> str:
            key = next((k for k in keys if k in secret), None)
            try:
                return secret[key].decode() if key else ""
            except UnicodeDecodeError as error:
                raise AuthenticationFailed(
                    f"{key} in the Secret is no text; write it anew"
                ) from error

        username, password = text("username"), text("password")
        token = text("bearerToken").strip()
        # Libraries quote what they refuse; so it is refused here, without quoting.
        for key, value in (("username", username), ("password", password), ("bearerToken", token)):
            if any(unicodedata.category(c) == "Cc" for c in value):
                raise AuthenticationFailed(
                    f"{key} in the Secret has a line break or another control character in it; "
                    "write it anew, without one at its end"
                )
        if not token.isascii():
            raise AuthenticationFailed(
                "bearerToken in the Secret has characters that are no ASCII; write it anew"
            )
        return cls(
            username=username,
            password=password,
            bearer_token=token,
            identity=text("identity"),
            known_hosts=text("known_hosts"),
            authority=text("ca.crt", "caFile"),
        )

    def check_against(self, address: Address) -> None:
        """Refuse what would not work or would be told to everybody on the way.

        Raises:
            AuthenticationFailed: the Secret does not fit the address.
            InvalidSource: the Secret would travel unencrypted.
        """
        has_http = bool(self.password or self.bearer_token or self.username)
        if address.scheme == "http" and (has_http or self.authority):
            raise InvalidSource(
                "credentials over http:// can be read by everybody on the way; write https:// "
                "into spec.url"
            )
        if self.bearer_token and (self.username or self.password):
            raise AuthenticationFailed(
                "the Secret has both a bearerToken and a username or password; keep one of the two"
            )
        if address.scheme == "ssh" and not (self.identity or self.password):
            raise AuthenticationFailed(
                "for ssh the Secret of spec.secretRef needs identity (a private key) and "
                "known_hosts"
            )
        if address.scheme == "ssh" and not self.known_hosts.strip():
            raise AuthenticationFailed(
                "the Secret has no known_hosts; without it nobody knows who answers. Put the "
                "lines of `ssh-keyscan HOST` there, after comparing them with what the host's "
                "owner publishes"
            )
