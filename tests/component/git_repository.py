# SPDX-License-Identifier: Apache-2.0
"""A repository on the disk, the GitSource that follows it, and what is said of the two."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster_world import World, eventually, resource_of
from dulwich import porcelain

from backends.kube.client import EVENTS, GIT_SOURCES, POD_SNAPSHOT_POLICIES
from reconciler.git_access import SECRETS
from schemas.names import OWN_API_VERSION

# As docs/git-source.md shows it.
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: podsnap-{name}, namespace: {namespace}}}
rules:
  - {{apiGroups: [""], resources: [secrets], resourceNames: [{name}], verbs: [get]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: podsnap-{name}, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: podsnap-{name}}}
subjects:
  - {{kind: ServiceAccount, name: podsnap-controller, namespace: podsnap-system}}
"""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository and the GitSource that reads it."""

    world: World
    path: Path

    def commit(self, **files: str | None) -> str:
        """Write files (``None`` removes; ``__`` is a slash, the suffix is .yaml) and commit."""
        for name, text in files.items():
            file = self.path / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(exist_ok=True)
            if text is None:
                porcelain.remove(str(self.path), [str(file)])
            else:
                file.write_text(text, encoding="utf-8")
                porcelain.add(str(self.path), [str(file)])
        who = b"t <t@example.org>"
        return porcelain.commit(
            str(self.path), message=b"change", author=who, committer=who
        ).decode()

    def follow(self, name: str = "repo", **spec: Any) -> None:  # noqa: ANN401 - fields of the spec
        """Create the GitSource."""
        body = self.world.object(
            "GitSource", name, {"url": f"file://{self.path}", "interval": "200ms", **spec}
        )
        body["apiVersion"] = OWN_API_VERSION
        self.world.create(GIT_SOURCES, body)

    def change(self, spec: dict[str, Any] | None = None, **annotations: str) -> None:
        """Change the GitSource as a user does (``_`` is a dash)."""
        patch: dict[str, Any] = {"spec": spec or {}}
        if annotations:
            names = {f"podsnap.dev/{k.replace('_', '-')}": v for k, v in annotations.items()}
            patch["metadata"] = {"annotations": names}
        self.world.admin.merge_patch(
            GIT_SOURCES,
            "repo",
            patch,
            namespace=self.world.namespace,
            field_manager="user",
        )

    def delete(self, name: str = "repo") -> None:
        """Delete the GitSource, and wait until it is gone."""
        self.world.admin.delete(GIT_SOURCES, name, namespace=self.world.namespace)
        eventually(lambda: self.world.get(GIT_SOURCES, name) is None, f"{name} is gone")

    def status(self, name: str = "repo") -> dict[str, Any]:
        """Return the source's status."""
        status: dict[str, Any] = (self.world.get(GIT_SOURCES, name) or {}).get("status") or {}
        return status

    def conditions(self, name: str = "repo") -> dict[str, dict[str, Any]]:
        """Return the source's conditions by type."""
        return {c["type"]: c for c in self.status(name).get("conditions") or ()}

    def told(self, reason: str) -> str:
        """Wait for an event on the source, and return its message."""

        def found() -> str:
            events, _ = self.world.admin.list(EVENTS, namespace=self.world.namespace)
            return next((str(e["message"]) for e in events if e["reason"] == reason), "")

        return str(eventually(found, f"an event {reason}"))

    def secret(self, name: str, **data: str) -> None:
        """Create a Secret (``__`` is a dot) that the controller may read."""
        namespace = self.world.namespace
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": {k.replace("__", "."): v for k, v in data.items()},
        }
        self.world.admin.apply(SECRETS, body, field_manager="user", force=True)
        for document in yaml.safe_load_all(ROLE.format(name=name, namespace=namespace)):
            self.world.admin.apply(
                resource_of(document), document, field_manager="user", force=True
            )

    def applied(self, commit: str) -> dict[str, Any]:
        """Wait until a commit is applied, and return the Ready condition."""
        eventually(
            lambda: self.status().get("lastAppliedRevision", "").endswith(commit),
            f"commit {commit} is applied: {self.status()}",
        )
        return self.ready()

    def ready(self) -> dict[str, Any]:
        """Return the Ready condition."""
        return self.world.condition(GIT_SOURCES, "repo", "Ready")

    def refused(self, text: str) -> str:
        """Wait until Ready is False with a text, and return the message."""
        eventually(
            lambda: self.ready().get("status") == "False" and text in self.ready()["message"],
            f"refused with {text!r}",
        )
        return str(self.ready()["message"])

    def policy_text(self, name: str = "web", **spec: Any) -> str:  # noqa: ANN401 - spec fields
        """Return a policy as a file."""
        base = {
            "selector": {"matchLabels": {"app": name}},
            "storageConfigName": self.world.store,
            "triggerConfig": {"type": "manual"},
        }
        body = self.world.object("PodSnapshotPolicy", name, {**base, **spec})
        del body["metadata"]["namespace"]
        return yaml.safe_dump(body)

    def policy(self, name: str = "web") -> dict[str, Any] | None:
        """Return a policy from the cluster."""
        return self.world.get(POD_SNAPSHOT_POLICIES, name)
