# SPDX-License-Identifier: Apache-2.0
"""The cluster that a command asks: kubeconfig, context and namespace as kubectl takes them.

Questions that do not depend on each other are asked at once, because an answer is wanted within a
blink. What the user may not read is left out and named, unless the command is about it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from reconciler.commands.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from backends.kube.client import KubeClient, Resource
    from backends.kube.errors import ApiError
    from backends.kube.transport import Transport

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Cluster:
    """A cluster, and the namespace that is meant; ``unknown`` says what could not be read."""

    client: "KubeClient"
    namespace: str
    unknown: list[str] = field(default_factory=list)

    def soon(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Ask in the background; an answer that nobody waits for never delays the end."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - raised again where the answer is wanted
                future.set_exception(error)

        Thread(target=run, daemon=True).start()  # a pool's threads would be waited for
        return future

    def if_allowed(self, answer: "Future[T]", what: str) -> T | None:
        """Return an answer, ``None`` with a note if the user may not read it."""
        return self.asked(answer, what)[1]

    def asked(self, answer: "Future[T]", what: str) -> tuple[bool, T | None]:
        """Return whether the user may read it, with a note if not, and the answer."""
        from backends.kube.errors import Forbidden

        try:
            return True, answer.result()
        except Forbidden as error:
            self.unknown.append(f"{what}: {error}")
            return False, None

    def find(
        self, resource: "Resource", name: str, *, namespace: str | None = None
    ) -> dict[str, Any] | None:
        """Return an object, ``None`` if there is none.

        Raises:
            ApiError: the API server refused, did not answer, or does not know the kind.
        """
        from backends.kube.errors import NotFound

        try:
            return self.client.get(resource, name, namespace=namespace)
        except NotFound as error:
            if not error.details.get("name"):
                raise  # the kind, not the object
            return None

    def list(
        self, resource: "Resource", *, namespace: str | None = None, **selectors: str
    ) -> "list[dict[str, Any]]":
        """Return the objects that the selectors of ``KubeClient.list`` select."""
        return self.client.list(resource, namespace=namespace, **selectors)[0]


def asks_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command kubectl's options, and the cluster as its first argument."""
    option = click.option("-n", "--namespace", default="", help="Default: that of the context.")
    return option(asks_all(command))


def asks_all(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that is about no namespace kubectl's options, and the cluster."""

    @click.option("--context", default="", help="A context of the kubeconfig.")
    @click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path),
        help="Default: $KUBECONFIG, then ~/.kube/config.",
    )
    @wraps(command)
    def run(
        *args: object, kubeconfig: Path | None, context: str, namespace: str = "", **kwargs: object
    ) -> None:
        with connected(kubeconfig, context, namespace) as cluster:
            command(cluster, *args, **kwargs)

    return run


@contextmanager
def connected(kubeconfig: Path | None, context: str, namespace: str) -> Iterator[Cluster]:
    """Open a cluster, and turn the API server's refusals into errors for people.

    Raises:
        CommandError: there is no such cluster, or it refused or did not answer.
    """
    path = kubeconfig or _default_kubeconfig()
    context_name, chosen = _context(path, context)
    transport_class = _transport()
    from backends.kube.client import KubeClient
    from backends.kube.errors import ApiError

    transport = transport_class.from_kubeconfig(path, context=context_name, user_agent="podsnap")
    cluster = Cluster(KubeClient(transport), namespace or chosen.get("namespace") or "default")
    try:
        yield cluster
    except ApiError as error:
        raise in_plain_words(error) from error
    finally:
        transport.close()


def _default_kubeconfig() -> Path:
    named = [Path(p) for p in os.environ.get("KUBECONFIG", "").split(os.pathsep) if p]
    return next((p for p in named if p.exists()), named[0] if named else _in_home())


def _in_home() -> Path:
    return Path.home() / ".kube" / "config"


def _context(path: Path, wanted: str) -> tuple[str, Mapping[str, str]]:
    """Return the name and the entry of the context that is meant."""
    import yaml

    try:
        doc = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader) or {}
        contexts = {c["name"]: c.get("context") or {} for c in doc.get("contexts") or ()}
        served = {c["name"] for c in doc.get("clusters") or ()}
        name = wanted or doc.get("current-context") or ""
    except FileNotFoundError as error:
        raise CommandError(
            ExitCode.ERROR,
            f"{path} does not exist; set KUBECONFIG, for a local cluster with: "
            "export KUBECONFIG=$(podsnap local kubeconfig)",
        ) from error
    except OSError as error:
        raise CommandError(
            ExitCode.ERROR, f"{path} cannot be read: {error.strerror}; name another kubeconfig"
        ) from error
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise CommandError(
            ExitCode.ERROR, f"{path} is no kubeconfig; name another one with --kubeconfig"
        ) from error
    if name not in contexts or contexts[name].get("cluster") not in served:
        what = f"context {name!r}" if name else "current context"
        raise CommandError(
            ExitCode.ERROR,
            f"{path} has no {what} with a cluster; name one of its contexts with --context: "
            f"{', '.join(sorted(contexts)) or 'it has none'}",
        )
    return name, contexts[name]


def _transport() -> "type[Transport]":
    """Import the transport without google-auth.

    pykube loads it where it is installed, for an auth provider that kubectl dropped long ago, and
    it would be a fifth of a command's start.
    """
    absent = "google.auth" not in sys.modules
    if absent:
        sys.modules["google.auth"] = None  # type: ignore[assignment] # so that the import fails
    try:
        from backends.kube.transport import Transport
    finally:
        if absent:
            del sys.modules["google.auth"]
    return Transport


def in_plain_words(error: "ApiError") -> CommandError:
    """Return what a person is told of a refusal, with the exit code."""
    from backends.kube.errors import Forbidden, NotFound, ServerUnavailable, TooManyRequests

    unauthorized = 401
    match error:
        case Forbidden() if error.code == unauthorized:
            return CommandError(
                ExitCode.FORBIDDEN,
                f"the API server does not know who you are ({error}); renew the credentials of "
                "the kubeconfig's user",
            )
        case Forbidden():
            return CommandError(
                ExitCode.FORBIDDEN, f"{error}; ask for a Role that allows it, or use another user"
            )
        case NotFound() if not error.details.get("name"):
            return CommandError(
                ExitCode.NOT_INSTALLED,
                "the cluster has no kinds of podsnapshot.gke.io/v1, so podsnap is not installed "
                "there; install them (podsnap crds | kubectl apply --server-side -f -) or choose "
                "another cluster with --context",
            )
        case ServerUnavailable() | TooManyRequests():
            return CommandError(
                ExitCode.UNREACHABLE,
                f"{error}; see whether the cluster runs and the kubeconfig has its address",
            )
        case _:
            return CommandError(ExitCode.ERROR, f"the API server refused: {error}")
