# SPDX-License-Identifier: Apache-2.0
"""Why a repository is not read, by what helps.

Each class has the reason that stands in the condition. A stalled one is not mended by trying
again: the source, its Secret or the commit has to change.

GitError
├── FetchFailed            no answer, or one that is no Git server's: tried again
├── TimedOut               spec.timeout is over: tried again
├── RepositoryNotFound     nothing at the address: tried again
├── RefNotFound            no such branch, tag or commit: tried again
├── PathNotFound           no such folder in the commit: tried again
├── InvalidSource          the address or the path can never be read
├── AuthenticationFailed   the server refuses the credentials, or they are unusable
├── HostKeyRefused         the SSH server is not the one in known_hosts
├── CertificateRefused     the TLS server is not one that ca.crt vouches for
├── LimitExceeded          more bytes, files or levels than policies ever need
├── EntryRefused           a link, a submodule: something that is not followed
└── SignatureRefused       the commit or tag is not signed by a key that counts
"""

from typing import ClassVar


class GitError(Exception):
    """The text says what was found, what follows and what to do."""

    reason: ClassVar[str] = "FetchFailed"
    is_stalled: ClassVar[bool] = False


class FetchFailed(GitError):  # noqa: N818 - these read as what happened, and as the reason
    """The server did not answer as a Git server does."""


class TimedOut(GitError):  # noqa: N818
    """The whole fetch took longer than it may."""

    reason = "TimedOut"


class RepositoryNotFound(GitError):  # noqa: N818
    """There is no repository at the address."""

    reason = "RepositoryNotFound"


class RefNotFound(GitError):  # noqa: N818
    """The branch, tag or commit is not in the repository."""

    reason = "RefNotFound"


class PathNotFound(GitError):  # noqa: N818
    """The folder is not in the commit."""

    reason = "PathNotFound"


class InvalidSource(GitError):  # noqa: N818
    """The address or the path can never be read."""

    reason = "InvalidSource"
    is_stalled = True


class AuthenticationFailed(GitError):  # noqa: N818
    """The credentials are refused, incomplete or unreadable."""

    reason = "AuthenticationFailed"
    is_stalled = True


class HostKeyRefused(GitError):  # noqa: N818
    """The SSH server shows a key that is not in known_hosts."""

    reason = "HostKeyRefused"
    is_stalled = True


class CertificateRefused(GitError):  # noqa: N818
    """The TLS server shows a certificate that nobody known has signed."""

    reason = "CertificateRefused"
    is_stalled = True


class LimitExceeded(GitError):  # noqa: N818
    """More bytes, files or levels than policies ever need."""

    reason = "LimitExceeded"
    is_stalled = True


class EntryRefused(GitError):  # noqa: N818
    """The tree holds something that is not followed."""

    reason = "TreeRefused"
    is_stalled = True


class SignatureRefused(GitError):  # noqa: N818
    """The commit or tag is unsigned, badly signed, or signed by somebody else."""

    reason = "SignatureRefused"
    is_stalled = True
