# SPDX-License-Identifier: Apache-2.0
"""Debian packages as a source of files: downloaded and unpacked, never installed.

The concept: apt finds and authenticates a package by the host's own configuration, ``dpkg -x``
unpacks it elsewhere; no maintainer script runs and nothing on the host changes.

The trap: the host's package lists may be absent (container images delete them) or name versions
that the mirror no longer has. Both look like "unable to locate" or a 404; the answer to both is one
``apt-get update`` into lists of our own, and then a second try.
"""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

# A mirror that gives nothing for this long is down; a whole download takes seconds.
_DOWNLOAD_LIMIT_S: Final = 600
_UNPACK_LIMIT_S: Final = 120
_TAIL_LINES: Final = 5


class PackageError(Exception):
    """Packages could not be had; the message says which command failed and what to do."""


class Apt:
    """apt with its lists and caches in a private directory."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._lists = state / "lists"
        self._config = state / "apt.conf"

    def environment(self) -> dict[str, str]:
        """Return the environment in which apt programs use the same lists as this object."""
        (self._state / "cache" / "archives" / "partial").mkdir(
            parents=True, exist_ok=True, mode=0o700
        )
        lines = [
            'APT::Sandbox::User "root";',  # the private directory is closed to the user _apt
            f'Dir::Cache "{self._state / "cache"}";',
        ]
        if self._lists.is_dir():
            lines.append(f'Dir::State::Lists "{self._lists}";')
        self._config.write_text("\n".join([*lines, ""]))
        return {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C"}

    def refresh(self, progress: Callable[[str], None]) -> None:
        """Fetch the lists of all configured sources.

        Raises:
            PackageError: the mirror cannot be reached.
        """
        progress("fetching Debian package lists")
        (self._lists / "partial").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._run(["apt-get", "update", "-qq"], cwd=self._state)

    def download(
        self, packages: Sequence[str], destination: Path, *, progress: Callable[[str], None]
    ) -> list[Path]:
        """Download exactly the named packages (``name`` or ``name=version``), no dependencies.

        Raises:
            PackageError: a package does not exist, or the mirror cannot be reached.
        """
        command = ["apt-get", "download", "-qq", *packages]
        try:
            self._run(command, cwd=destination)
        except PackageError:
            self.refresh(progress)
            self._run(command, cwd=destination)
        archives = sorted(destination.glob("*.deb"))
        if len(archives) != len(set(packages)):
            names = ", ".join(archive.name for archive in archives)
            raise PackageError(
                f"{len(set(packages))} packages were asked for, {len(archives)} arrived ({names}); "
                "one of the names is not a binary package of this Debian release: "
                "look with `apt-cache policy NAME`"
            )
        return archives

    def _run(self, command: Sequence[str], *, cwd: Path) -> None:
        _run(command, cwd=cwd, env=self.environment(), limit_s=_DOWNLOAD_LIMIT_S)


def unpack(archive: Path, root: Path) -> None:
    """Unpack the files of one package below ``root``.

    Raises:
        PackageError: the archive is damaged.
    """
    command = ["dpkg-deb", "--extract", str(archive), str(root)]
    _run(command, cwd=root, env=dict(os.environ), limit_s=_UNPACK_LIMIT_S)


def _run(command: Sequence[str], *, cwd: Path, env: dict[str, str], limit_s: int) -> None:
    said = " ".join(command)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise PackageError(
            f"{command[0]} was not found; images are put together from Debian packages: "
            "build them on Debian or Ubuntu"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(
            f"`{said}` did not end within {limit_s} s; check that the Debian mirror answers"
        ) from error
    if done.returncode != 0:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_TAIL_LINES:])
        raise PackageError(
            f"`{said}` failed with status {done.returncode}: {tail}; check the package names "
            "in image.toml and that the Debian mirror answers"
        )
