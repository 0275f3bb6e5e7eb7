# SPDX-License-Identifier: Apache-2.0
"""What an agent is told about its node, from one TOML file.

Paths are the node's own; nothing here comes from the cluster, so no API object can move them.
"""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from backends.objects.factory import DEFAULT_CONNECTIONS, BucketAccess


class SettingsError(Exception):
    """The file is missing, no TOML, or lacks a key."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Paths and names of one node.

    ``machine_series`` may be the node's instance type (``n2-standard-4``); if it is empty, the
    CPU's vendor, family and model take its place. ``bucket_root`` is for local clusters alone,
    where buckets are directories below it. With ``bucket_tokens`` each use of a bucket is by a
    token that the controller mints for the Pod, else by Application Default Credentials. The cache
    of images may take ``cache_limit_bytes`` (0: no such limit) and ``cache_disk_share`` of its file
    system, and leaves ``cache_free_share`` of it free: more than where the kubelet evicts Pods
    (``nodefs.available<10%``). Servers of images that are loaded in the background run in the
    control group ``pages_cgroup``, so that they outlive the agent's Pod.
    """

    node_name: str
    kubeconfig: Path
    state_dir: Path
    socket: Path
    runsc: Path
    runsc_root: Path
    runsc_config: Path
    kubelet_root: Path
    ctr: Path
    containerd_address: Path
    containerd_state: Path
    cluster_id: str
    bucket_root: Path | None = None
    bucket_endpoint: str = ""
    bucket_connections: int = DEFAULT_CONNECTIONS
    bucket_tokens: bool = False
    cache_limit_bytes: int = 0
    cache_disk_share: float = 0.5
    cache_free_share: float = 0.15
    metrics_address: str = "127.0.0.1:8081"
    runtime_state_dir: Path = Path("/run/podsnap/runtime")
    machine_series: str = ""
    pages_cgroup: str = "podsnap-pages"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            SettingsError: with the file, what is wrong and what to do.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path} cannot be read ({error.strerror}); write it") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: {error}; mend the file") from error
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(raw.keys() - known.keys())
        if unknown:
            raise SettingsError(f"{path}: unknown key {unknown[0]}; known: {', '.join(known)}")
        paths = {Path, Path | None}
        typed = {k: Path(v) if known[k].type in paths else v for k, v in raw.items()}
        try:
            return cls(**typed)  # type: ignore[arg-type] # the keys were just compared
        except TypeError as error:
            raise SettingsError(f"{path}: {error}") from error

    @property
    def staging_dir(self) -> Path:
        """Where images are written; must be able to hold a sandbox's memory."""
        return self.state_dir / "staging"

    @property
    def workload_dir(self) -> Path:
        """Where runsc writes what workloads ask for, one directory a sandbox."""
        return self.staging_dir / "workload"

    @property
    def cold_marks_dir(self) -> Path:
        """Where the runtime notes Pods whose restore failed, one file a Pod."""
        return self.runtime_state_dir / "cold"

    @property
    def attempts_dir(self) -> Path:
        """Where the runtime notes restored Pods that were not seen to do well yet."""
        return self.runtime_state_dir / "attempts"

    @property
    def pages_dir(self) -> Path:
        """Where images are mounted whose pages are on their way, one directory each."""
        return self.runtime_state_dir / "pages"

    @property
    def bucket_access(self) -> BucketAccess:
        """How buckets are reached."""
        return BucketAccess(self.bucket_root, self.bucket_endpoint, self.bucket_connections)

    @property
    def cache_dir(self) -> Path:
        """Where verified images lie ready for restores."""
        return self.state_dir / "cache"

    @property
    def bundles_dir(self) -> Path:
        """Where containerd keeps the OCI bundles of running containers."""
        return self.containerd_state / "io.containerd.runtime.v2.task" / "k8s.io"
