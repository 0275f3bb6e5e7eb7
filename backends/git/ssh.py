# SPDX-License-Identifier: Apache-2.0
"""SSH to a Git server, with what a Secret holds and nothing else.

paramiko, not the ssh program: the private key never lies in a file, and there is no agent, no
user's configuration and no command line between us and the server. A host that is not in
known_hosts is refused before anything is sent to it; it is never learnt.
"""

import io
import socket
import threading
from contextlib import suppress
from typing import Any, Final, cast

import paramiko
from dulwich.client import SSHGitClient, SSHVendor
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

from backends.git.address import Address, Credentials
from backends.git.errors import AuthenticationFailed, FetchFailed, HostKeyRefused
from backends.git.limits import Allowance

_KEY_CLASSES: Final = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
_PORT: Final = 22


def ssh_client(address: Address, credentials: Credentials, allowance: Allowance) -> SSHGitClient:
    """Return a client; it connects when it is asked for something."""
    return _Client(
        address.host,
        port=address.port,
        username=address.user or credentials.username or "git",
        vendor=_Vendor(credentials, allowance),
        thin_packs=False,
    )


class _Client(SSHGitClient):
    def _connect(
        self, cmd: bytes, path: str | bytes, protocol_version: int | None = None
    ) -> tuple[Any, Any, Any]:
        protocol, can_read, errors = super()._connect(cmd, path, protocol_version)
        # dulwich leaves it open where the server hangs up first.
        cast("_Vendor", self.ssh_vendor).allowance.guard(protocol.close)
        return protocol, can_read, errors


class _Vendor(SSHVendor):
    """One connection, and a channel for each command."""

    def __init__(self, credentials: Credentials, allowance: Allowance) -> None:
        self._credentials = credentials
        self.allowance = allowance
        self._client: paramiko.SSHClient | None = None

    def run_command(  # type: ignore[override]  # it is used by its methods, as its docstring says
        self,
        host: str,
        command: bytes,
        username: str | None = None,
        port: int | None = None,
        **_: Any,  # noqa: ANN401 - what other vendors take
    ) -> "_Channel":
        """Run a command over there."""
        try:
            if self._client is None:
                self._client = self._connect(host, port or _PORT, username or "git")
            transport = self._client.get_transport()
            if transport is None:
                raise FetchFailed(f"{host} closed the connection; it is tried again")
            channel = transport.open_session(timeout=self.allowance.remaining_s())
            with suppress(paramiko.SSHException):  # a server may refuse it, and speaks version 0
                channel.set_environment_variable("GIT_PROTOCOL", "version=2")
            channel.exec_command(command)
        except paramiko.SSHException as error:
            raise FetchFailed(f"{host} does not run git over ssh: {error}") from error
        return _Channel(channel, self.allowance)

    def _connect(self, host: str, port: int, username: str) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_Refuse())
        _load(client.get_host_keys(), self._credentials.known_hosts)
        key = _private_key(self._credentials) if self._credentials.identity else None
        try:
            connection = self.allowance.connect(host, port)
        except OSError as error:
            raise FetchFailed(f"{host}:{port} cannot be reached: {error}") from error
        self.allowance.guard(_closing(client, connection))
        limit_s = self.allowance.remaining_s()
        try:
            client.connect(
                host,
                port,
                username=username,
                password=None if key else self._credentials.password,
                pkey=key,
                sock=connection,
                timeout=limit_s,
                banner_timeout=limit_s,
                auth_timeout=limit_s,
                allow_agent=False,
                look_for_keys=False,
            )
        except paramiko.BadHostKeyException as error:
            raise HostKeyRefused(
                f"{host} shows the host key {error.key.get_name()} {error.key.fingerprint}, which "
                "is not the one in known_hosts; nothing was sent to it. Either somebody stands in "
                "between, or its key was changed: ask its owner, then mend known_hosts in the "
                "Secret"
            ) from error
        except paramiko.AuthenticationException as error:
            raise AuthenticationFailed(
                f"{host} does not let {username} in with the key or password of the Secret; is "
                "its public key registered there?"
            ) from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise FetchFailed(f"{host}:{port} does not speak ssh as it should: {error}") from error
        return client


class _Refuse(paramiko.MissingHostKeyPolicy):
    def missing_host_key(self, client: Any, hostname: str, key: paramiko.PKey) -> None:  # noqa: ANN401, ARG002 - paramiko's signature
        raise HostKeyRefused(
            f"known_hosts in the Secret has no line for {hostname}, which shows the host key "
            f"{key.get_name()} {key.fingerprint}; nothing was sent to it. Compare that with what "
            "its owner publishes, then add the line"
        )


class _Channel:
    """A command's two ends, as dulwich's Protocol reads and writes them."""

    def __init__(self, channel: paramiko.Channel, allowance: Allowance) -> None:
        channel.settimeout(allowance.remaining_s())
        self._channel = channel
        self._lock = threading.Lock()
        self.read = allowance.counting(channel.makefile("rb", 1 << 16).read)
        self.stderr = channel.makefile_stderr("rb")

    def write(self, data: bytes) -> int:
        self._channel.sendall(data)
        return len(data)

    def can_read(self) -> bool:
        return bool(self._channel.recv_ready())

    def close(self) -> None:
        self._channel.close()


def _closing(client: paramiko.SSHClient, connection: socket.socket) -> Any:  # noqa: ANN401 - a callback
    def close() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        client.close()
        connection.close()

    return close


def _load(keys: paramiko.HostKeys, text: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        if line.startswith("@"):
            raise AuthenticationFailed(
                f"known_hosts:{number}: markers such as {line.split()[0]} are not understood; "
                "write the hosts' own keys"
            )
        try:
            entry = HostKeyEntry.from_line(" ".join(line.split()), number)
        except (InvalidHostKey, paramiko.SSHException, ValueError) as error:
            raise AuthenticationFailed(
                f"known_hosts:{number} cannot be read; write it as ssh-keyscan prints it"
            ) from error
        if entry is None:
            continue  # a kind of key that paramiko does not know, and would not accept
        for name in entry.hostnames or ():
            keys.add(name, entry.key.get_name(), entry.key)


def _private_key(credentials: Credentials) -> paramiko.PKey:
    for kind in _KEY_CLASSES:
        try:
            key: paramiko.PKey = kind.from_private_key(
                io.StringIO(credentials.identity), credentials.password or None
            )
        except paramiko.PasswordRequiredException as error:
            raise AuthenticationFailed(
                "identity in the Secret is encrypted; add its passphrase as password"
            ) from error
        except (paramiko.SSHException, ValueError, IndexError):
            continue
        return key
    raise AuthenticationFailed(
        "identity in the Secret is no private key that can be read (Ed25519, ECDSA or RSA), or "
        "its passphrase in password is wrong; write the file as ssh-keygen made it"
    )
