# SPDX-License-Identifier: Apache-2.0
"""What a GitSource's Secrets hold, read anew at each look.

The controller has no right to Secrets by itself, and watches none: a namespace grants it the few
that its GitSources name. So a refusal here is the usual first answer, and says what to create.
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from backends.git.address import Credentials
from backends.git.errors import GitError
from backends.git.signatures import TrustedSigners
from backends.kube.client import KubeClient, Resource
from backends.kube.errors import ApiError, Forbidden, NotFound
from schemas.git_source import GitSource

SECRETS: Final = Resource("", "v1", "secrets", "Secret")


class SecretNotReadable(GitError):  # noqa: N818 - reads as what happened, and as the reason
    """A Secret that the source names is missing, or may not be read."""

    reason = "SecretNotReadable"
    is_stalled = True


@dataclass(frozen=True, slots=True)
class Access:
    """With what a source gets in and whom it believes. ``version`` changes with the Secrets."""

    credentials: Credentials = field(default_factory=Credentials)
    signers: TrustedSigners | None = None
    version: str = ""


def read_access(client: KubeClient, source: GitSource) -> Access:
    """Read the Secrets that a source names.

    Raises:
        GitError: one cannot be read or does not hold what it should.
        ApiError: the API server does not answer.
    """
    credentials, signers, versions = Credentials(), None, []
    if source.secret:
        data, version = _read(client, source, source.secret, "spec.secretRef")
        credentials = Credentials.parse(data)
        versions.append(version)
    if source.verify:
        data, version = _read(client, source, source.verify.secret, "spec.verify.secretRef")
        signers = TrustedSigners.parse(data)
        versions.append(version)
    return Access(credentials, signers, " ".join(versions))


def _read(
    client: KubeClient, source: GitSource, name: str, field_path: str
) -> tuple[dict[str, bytes], str]:
    namespace = source.metadata.namespace
    try:
        secret = client.get(SECRETS, name, namespace=namespace)
        data = {k: base64.b64decode(v) for k, v in (secret.get("data") or {}).items()}
    except NotFound as error:
        raise SecretNotReadable(
            f"{field_path} names Secret {name}, which is not in namespace {namespace}; create it"
        ) from error
    except Forbidden as error:
        raise SecretNotReadable(
            f"{field_path} names Secret {namespace}/{name}, which the controller may not read; "
            "grant it `get` on that one by a Role and a RoleBinding, as docs/git-source.md shows"
        ) from error
    except binascii.Error as error:
        raise ApiError(f"Secret {namespace}/{name} is not as the API gives it: {error}") from error
    return data, f"{secret['metadata']['uid']}/{secret['metadata']['resourceVersion']}"
