# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster on one host: up, down, and its parts in the hand of a test.

Everything is derived from the cluster's name and from what the kernel says lives, so ``up`` and
``down`` can be killed at any line and called again. What stays on the host while it runs: one
bridge, routes over it, control groups, one state directory, one supervisor per machine.

The trap is "ready": nothing here waits for a time to pass. Each step waits for the fact that the
next one needs, with a bound, and names the log to read when the bound is reached.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from localcluster import cgroups, control_plane, network, object_server, preflight, programs
from localcluster.api_server import ApiServer
from localcluster.certificates import Authority, write_private
from localcluster.control_plane import ControlPlane
from localcluster.exclusion import exclusively
from localcluster.machine import ComponentStatus, Machine, RunningComponent
from localcluster.network import ClusterNetwork
from localcluster.node import Node
from localcluster.toolchain import REPOSITORY, Toolchain, default_cache

DEFAULT_ROOT = Path("/var/lib/podsnap/local")
DEFAULT_NAME = "local"
COMMAND_LIMIT_S = 60.0
_POLL_S = 0.02
_TELL_EVERY_S = 5.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


class ClusterError(Exception):
    """The cluster cannot be brought up or down; the message says why and what to do."""


class LocalCluster:
    """A cluster by its name, running or not."""

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        *,
        root: Path = DEFAULT_ROOT,
        toolchain: Toolchain | None = None,
        progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ClusterError(
                f"the name {name!r} will not do: it becomes part of paths and control groups; "
                "use up to 40 of a-z, 0-9 and -, with a letter or digit at both ends"
            )
        self.name = name
        self.root = root.absolute()
        self.state_dir = self.root / name
        self.toolchain = toolchain or Toolchain()
        self.progress = progress
        self.authority = Authority(self.state_dir / "pki")

    # -- what it is made of

    @property
    def logs(self) -> Path:
        """Where every component's output goes."""
        return self.state_dir / "logs"

    @property
    def buckets(self) -> Path:
        """The directory whose folders are the cluster's buckets."""
        return self.state_dir / "buckets"

    @property
    def bucket_endpoint(self) -> str:
        """The address of its object server; empty where buckets are directories."""
        return object_server.endpoint(self) if self._record().get("bucket") == "gcs" else ""

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.authority.directory / "admin.kubeconfig"

    def exists(self) -> bool:
        """Tell whether there is anything of it on this host."""
        return self.state_dir.exists()

    def _record(self) -> dict[str, str]:
        try:
            text = (self.state_dir / "cluster.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        record: dict[str, str] = json.loads(text)
        return record

    @property
    def network(self) -> ClusterNetwork:
        """Its addresses: as recorded at the first ``up``, else derived from its name."""
        derived = ClusterNetwork.derived(self.name)
        if block := self._record().get("block"):
            return ClusterNetwork(self.name, network.parse_block(block))
        return derived

    @property
    def nodes(self) -> list[Node]:
        """Its nodes."""
        count = int(self._record().get("nodes", "1"))
        return [
            Node(
                number=number,
                cluster=self.name,
                network=self.network,
                authority=self.authority,
                toolchain=self.toolchain,
                directory=self.state_dir / f"node{number}",
            )
            for number in range(1, count + 1)
        ]

    @property
    def control_plane(self) -> ControlPlane:
        """Its control plane."""
        return ControlPlane(
            network=self.network,
            authority=self.authority,
            toolchain=self.toolchain,
            directory=self.state_dir / control_plane.NAME,
        )

    def machines(self) -> list[Machine]:
        """Return its machines, the control plane's first."""
        net, nodes = self.network, self.nodes
        control = Machine(
            name=control_plane.NAME,
            directory=self.state_dir / control_plane.NAME,
            state_dir=self.state_dir,
            link=net.link(control_plane.NAME, net.control, nodes=len(nodes)),
            binds={"/var/log": self.state_dir / control_plane.NAME / "log"},
            logs=self.logs,
        )
        return [
            control,
            *(
                Machine(
                    name=each.name,
                    directory=each.directory,
                    state_dir=self.state_dir,
                    link=net.link(each.name, each.address, nodes=len(nodes)),
                    binds=each.binds,
                    # Names of components repeat from the second node on.
                    logs=self.logs if each.number == 1 else self.logs / each.name,
                )
                for each in nodes
            ),
        ]

    def machine(self, name: str) -> Machine:
        """Return a machine by its name.

        Raises:
            ClusterError: there is none of that name.
        """
        for machine in self.machines():
            if machine.name == name:
                return machine
        known = ", ".join(m.name for m in self.machines())
        raise ClusterError(f"there is no machine {name!r} in cluster {self.name}; known: {known}")

    def component(self, machine: str, name: str) -> RunningComponent:
        """Return a component by its machine's name and its own."""
        return RunningComponent(self.machine(machine), name)

    def status(self) -> list[ComponentStatus]:
        """Return every component of every machine that runs."""
        return [status for machine in self.machines() for status in machine.status()]

    def run_in(
        self, machine: str, argv: list[str], *, limit_s: float = COMMAND_LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside a machine and return its output; it inherits the environment.

        Raises:
            subprocess.CalledProcessError: it failed.
            subprocess.TimeoutExpired: it took longer than ``limit_s``.
        """
        return subprocess.run(
            self.machine(machine).enter(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=limit_s,
        )

    def kubectl(self, *arguments: str, text: str = "", limit_s: float = COMMAND_LIMIT_S) -> str:
        """Run kubectl as the administrator and return its output.

        Raises:
            ClusterError: it failed; with what it said.
        """
        argv = [str(self.toolchain.path("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
            # A proxy cannot reach the cluster's addresses.
            env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def load(self, archive: Path) -> None:
        """Import an image archive on every node.

        Raises:
            ClusterError: containerd refuses it.
        """
        for each in self.nodes:
            try:
                self.run_in(each.name, each.ctr("images", "import", str(archive.absolute())))
            except subprocess.CalledProcessError as error:
                raise ClusterError(
                    f"{archive} cannot be imported on {each.name}: {error.stderr.strip()}; "
                    "it must be an OCI or Docker image archive"
                ) from error

    def api(self) -> ApiServer:
        """Return a connection to its API server, as administrator. To be closed."""
        return ApiServer(
            self.control_plane.server,
            ca=self.authority.ca,
            certificate=self.authority.certificate("admin"),
            key=self.authority.key("admin"),
        )

    # -- up

    def up(
        self,
        *,
        nodes: int | None = None,
        with_programs: bool = True,
        block: str | None = None,
        bucket: Literal["directory", "gcs"] | None = None,
    ) -> None:
        """Bring it up, from nothing or from whatever is left; return when it is ready.

        ``nodes`` (1), ``block`` (derived from the name) and ``bucket`` (directory; or gcs, a server
        that speaks Cloud Storage's protocol) are fixed by the first call; leave them out later.

        Raises:
            ClusterError, PreflightError, ToolchainError, NetworkError, MachineError, CgroupError:
                with the cause and what to do.
        """
        preflight.check(self.root, self._preflight)
        self.toolchain.build(self.progress)
        with self._exclusively(), contextlib.closing(self.api()) as api:
            self._settle(nodes, block, bucket)
            self._start_machines()
            self._start_kubernetes(api)
            if self.bucket_endpoint:
                object_server.start(self)
            if with_programs:
                programs.start(self, api)
            self.progress(f"cluster {self.name} is ready")

    def _preflight(self, root: Path) -> list[str]:
        # What runs has passed the checks; they cost half of an `up` that finds all in place.
        return [] if any(m.is_alive() for m in self.machines()) else preflight.problems(root)

    def _settled(self, nodes: int | None, block: str | None, bucket: str | None) -> dict[str, str]:
        """Return the record of what must not change while the cluster lives."""
        net = ClusterNetwork.derived(self.name)
        wanted = {
            "block": str(network.parse_block(block) if block else net.block),
            "nodes": str(nodes or 1),
            "bucket": bucket or "directory",
            "id": str(uuid.uuid4()),
        }
        record = self._record()
        for key, given in (("block", block), ("nodes", nodes), ("bucket", bucket)):
            was = record.get(key, "directory")  # an old record has no bucket
            if record and given is not None and wanted[key] != was:
                raise ClusterError(
                    f"cluster {self.name} was made with {key} {was}, which cannot become "
                    f"{wanted[key]}; remove it first: podsnap local down --name {self.name}"
                )
        return record or wanted

    def _settle(self, nodes: int | None, block: str | None, bucket: str | None) -> None:
        """Write every file."""
        settled = self._settled(nodes, block, bucket)
        network.refuse_if_routed(ClusterNetwork(self.name, network.parse_block(settled["block"])))
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state_dir.chmod(0o700)
        if settled != self._record():
            write_private(self.state_dir / "cluster.json", json.dumps(settled))
        self.buckets.mkdir(exist_ok=True, mode=0o700)
        plane = self.control_plane
        identities = [*plane.identities(), *(i for n in self.nodes for i in n.identities())]
        self.authority.ensure(identities)
        plane.prepare()
        for each in self.nodes:
            each.prepare(server=plane.server)

    @property
    def id(self) -> str:
        """The cluster's identity, made once."""
        return self._record()["id"]

    def _start_machines(self) -> None:
        with self.step("machines and network"):
            network.ensure_bridge(self.network, nodes=len(self.nodes))
            for each in self.nodes:
                cgroups.ensure(each.cgroup)
            for machine in self.machines():
                machine.start()

    def _start_kubernetes(self, api: ApiServer) -> None:
        control, *workers = self.machines()
        plane = self.control_plane
        control.ensure(plane.etcd())
        control.ensure(plane.apiserver())
        for each, machine in zip(self.nodes, workers, strict=True):
            machine.ensure(each.containerd())
        self._import_pause_image()
        self.until("API server ready", api.is_ready, limit_s=60, log="kube-apiserver")
        control.ensure(plane.scheduler())
        control.ensure(plane.controller_manager())
        for each, machine in zip(self.nodes, workers, strict=True):
            machine.ensure(each.kubelet())
        runtime_class = {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "gvisor"},
            "handler": "runsc",
        }
        api.apply("/apis/node.k8s.io/v1/runtimeclasses/gvisor", runtime_class)
        for each in self.nodes:
            self.until(
                f"{each.name} Ready",
                partial(self._node_is_ready, api, each),
                limit_s=60,
                log="kubelet",
            )
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.until(
            "default service account",
            lambda: api.get(account) is not None,
            limit_s=60,
            log="kube-controller-manager",
        )

    def _node_is_ready(self, api: ApiServer, each: Node) -> bool:
        kubelet = self.component(each.name, "kubelet").status()
        started = datetime.now(UTC) - timedelta(seconds=kubelet.uptime_s)
        return kubelet.state == "running" and api.node_is_ready(
            each.name, since=started.replace(microsecond=0)
        )

    def _import_pause_image(self) -> None:
        from localcluster import images

        with self.step("pause image"):
            recipe = REPOSITORY / "examples" / "images" / "pause"
            image = images.build_image(recipe, cache=default_cache(), progress=self.progress)
            for each in self.nodes:
                self.until(
                    f"containerd on {each.name}",
                    partial(self._answers, each),
                    limit_s=30,
                    log="containerd",
                )
                listed = self.run_in(each.name, each.ctr("images", "list", "-q")).stdout
                if image.ref not in listed.split():
                    self.run_in(each.name, each.ctr("images", "import", str(image.archive)))

    def _answers(self, each: Node) -> bool:
        try:
            self.run_in(each.name, each.ctr("version"), limit_s=10)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return False
        return True

    # -- down

    def down(self) -> None:
        """Remove everything of it; harmless when there is nothing, or less than everything.

        Raises:
            MachineError, CgroupError, NetworkError, ClusterError: something cannot be removed.
        """
        with self._exclusively(remove=True):
            for machine in self.machines():
                machine.kill()
            network.remove_link(self.network.bridge)
            cgroups.remove(f"podsnap-{self.name}")
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
            if f" {self.state_dir}/" in mounts:
                raise ClusterError(
                    f"something is mounted below {self.state_dir}, which podsnap never does on the "
                    "host; unmount it, then run podsnap local down again"
                )
            if self.state_dir.exists():
                # cluster.json goes last: it names the network, which a second try needs.
                for entry in self.state_dir.iterdir():
                    if entry.name != "cluster.json":
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                shutil.rmtree(self.state_dir)
        # The last cluster's folders go too; rmdir takes none that holds anything.
        ours = [self.root, *([self.root.parent] if self.root == DEFAULT_ROOT else [])]
        with contextlib.suppress(OSError):
            for directory in ours:
                directory.rmdir()

    # -- waiting and order

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Tell how long something took."""
        began_s = time.monotonic()
        yield
        self.progress(f"{time.monotonic() - began_s:5.1f} s  {what}")

    def until(self, what: str, holds: Callable[[], bool], *, limit_s: float, log: str) -> None:
        """Wait for a fact.

        Raises:
            ClusterError: it did not come about; with the log to read.
        """
        with self.step(what):
            began_s = time.monotonic()
            told_s = 0.0
            while not holds():
                waited_s = time.monotonic() - began_s
                if waited_s > told_s + _TELL_EVERY_S:
                    told_s = waited_s
                    self.progress(f"{waited_s:5.1f} s  still waiting for: {what}")
                if waited_s > limit_s:
                    path = self.logs / f"{log}.log"
                    raise ClusterError(
                        f"waited {limit_s:.0f} s in vain for: {what}; the reason should be at the "
                        f"end of {path}:\n{last_lines(path)}"
                    )
                time.sleep(_POLL_S)

    def _exclusively(self, *, remove: bool = False) -> AbstractContextManager[None]:
        """Keep a second up or down of the same cluster waiting."""
        lock = self.root / f".{self.name}.lock"
        return exclusively(lock, remove=remove, progress=self.progress)


def last_lines(path: Path, count: int = 10) -> str:
    """Return the end of a log, indented."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in lines[-count:])
