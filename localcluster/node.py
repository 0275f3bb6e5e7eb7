# SPDX-License-Identifier: Apache-2.0
"""A node: containerd, the kubelet, gVisor, and the files they read.

gVisor is the only runtime: Pods run in runsc with or without ``runtimeClassName: gvisor``. Runsc is
called through podsnap's own OCI runtime, as on a cluster where podsnap is installed.

Two traps. gVisor's shim looks for emptyDir volumes below /var/lib/kubelet, whatever the kubelet is
told, hence the bind. And what belongs to one life of the machine (containerd's state, runsc's root)
lies in /run, which is memory: after a crash the sandboxes are gone, and a record that says
otherwise would hold the kubelet up for minutes.
"""

import json
import os
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from localcluster.certificates import Authority, Identity, write_private
from localcluster.control_plane import ENVIRONMENT
from localcluster.machine import Component
from localcluster.network import SYSTEM_PATH, ClusterNetwork
from localcluster.toolchain import REPOSITORY, Toolchain, lacks_sys_resource

PAUSE_IMAGE = "podsnap.local/pause:1"
RUNTIME_SOURCE = REPOSITORY / "nodeexec" / "podsnap_runtime.py"
CONTAINERD_STATE = Path("/run/containerd")
CONTAINERD_SOCKET = CONTAINERD_STATE / "containerd.sock"
RUNSC_ROOT = Path("/run/runsc")
KUBELET_ROOT = Path("/var/lib/kubelet")
AGENT_SOCKET = Path("/run/podsnap/agent.sock")
RUNTIME_STATE = Path("/run/podsnap/runtime")
METRICS_PORT = 8081
PLATFORM = "systrap"

_UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.differ.v1.erofs",
    "io.containerd.mount-handler.v1.erofs",
    "io.containerd.nri.v1.nri",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
)

_LAUNCHER = """\
#!{python} -IS
import sys

sys.path.insert(0, {directory!r})
import podsnap_runtime

del sys.path[0]
sys.exit(podsnap_runtime.main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a cluster; ``number`` counts from 1."""

    number: int
    cluster: str
    network: ClusterNetwork
    authority: Authority
    toolchain: Toolchain
    directory: Path

    @property
    def name(self) -> str:
        """Its name, in the API and as a machine."""
        return f"node{self.number}"

    @property
    def address(self) -> IPv4Address:
        """Its address."""
        return self.network.node(self.number)

    @property
    def cgroup(self) -> str:
        """The control group below which its Pods live."""
        return f"podsnap-{self.cluster}/{self.name}"

    @property
    def binds(self) -> dict[str, Path]:
        """What of the machine's file system is kept, and where."""
        return {
            str(KUBELET_ROOT): self.directory / "kubelet",
            "/var/lib/cni": self.directory / "cni",
            "/var/log": self.directory / "log",
        }

    @property
    def runsc_config(self) -> Path:
        """The shim's configuration."""
        return self.directory / "runsc.toml"

    @property
    def agent_settings(self) -> Path:
        """The agent's settings."""
        return self.directory / "agent.toml"

    def identities(self) -> list[Identity]:
        """Return whom to issue certificates for: the kubelet, as client and as server."""
        return [
            Identity(
                file=self.name,
                common_name=f"system:node:{self.name}",
                organization="system:nodes",
                hosts=(self.name, str(self.address), "127.0.0.1"),
            )
        ]

    def prepare(self, *, server: str) -> None:
        """Write what the components read."""
        self.authority.kubeconfig(self.name, server=server)
        for part in ("containerd", "cni.d", "runtime", "volume-plugins"):
            (self.directory / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        runtime = self._install_runtime()
        write_private(self.directory / "containerd.toml", self._containerd_toml())
        write_private(self.runsc_config, _runsc_toml(runtime))
        write_private(self.directory / "cni.d" / "10-bridge.conflist", self._cni_json())
        write_private(self.directory / "kubelet.json", self._kubelet_json())

    def _install_runtime(self) -> Path:
        """Install podsnap's OCI runtime and what it reads; return what the shim calls."""
        runsc = self.toolchain.path("runsc")
        if not RUNTIME_SOURCE.exists():
            return runsc
        # A system interpreter starts in 10 ms; a version manager's shim would take ten times that.
        system = Path("/usr/bin/python3")
        python = system if system.exists() else Path(sys.executable).resolve()
        settings = {
            "runsc": runsc,
            "agent_socket": AGENT_SOCKET,
            "kubelet_root": KUBELET_ROOT,
            "ctr": self.toolchain.path("ctr"),
            "containerd_address": CONTAINERD_SOCKET,
            "state_dir": RUNTIME_STATE,
        }
        directory = self.directory / "runtime"
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        write_private(directory / "podsnap-runtime.conf", text)
        # A module is compiled once; the program that is called would be at every call (5 ms).
        write_private(directory / "podsnap_runtime.py", RUNTIME_SOURCE.read_bytes())
        target = directory / "podsnap-runtime"
        temporary = directory / f".podsnap-runtime.{os.getpid()}"
        write_private(temporary, _LAUNCHER.format(python=python, directory=str(directory)))
        temporary.chmod(0o755)
        temporary.rename(target)
        return target

    def _containerd_toml(self) -> str:
        cri = "plugins.'io.containerd.cri.v1.runtime'"
        disabled = ", ".join(f"'{plugin}'" for plugin in _UNUSED_PLUGINS)
        plugins = {self.toolchain.path(name).parent for name in ("bridge", "host-local")}
        bin_dirs = ", ".join(f"'{directory}'" for directory in sorted(plugins))
        return f"""\
version = 3
root = '{self.directory / "containerd"}'
state = '{CONTAINERD_STATE}'
disabled_plugins = [{disabled}]
[grpc]
  address = '{CONTAINERD_SOCKET}'
[ttrpc]
  address = '{CONTAINERD_SOCKET}.ttrpc'
[plugins.'io.containerd.internal.v1.opt']
  path = '/run/containerd-opt'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{PAUSE_IMAGE}'
[{cri}]
  enable_selinux = false
  disable_apparmor = true
  restrict_oom_score_adj = {str(lacks_sys_resource()).lower()}
  [{cri}.containerd]
    default_runtime_name = 'runsc'
    [{cri}.containerd.runtimes.runsc]
      runtime_type = 'io.containerd.runsc.v1'
      runtime_path = '{self.toolchain.path("containerd-shim-runsc-v1")}'
      [{cri}.containerd.runtimes.runsc.options]
        TypeUrl = 'io.containerd.runsc.v1.options'
        ConfigPath = '{self.runsc_config}'
  [{cri}.cni]
    bin_dirs = [{bin_dirs}]
    conf_dir = '{self.directory / "cni.d"}'
    use_internal_loopback = true
"""

    def _cni_json(self) -> str:
        bridge = {
            "type": "bridge",
            "bridge": "pods",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni-addresses",
                "ranges": [[{"subnet": str(self.network.pods(self.number))}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        return json.dumps({"cniVersion": "1.0.0", "name": "podsnap", "plugins": [bridge]})

    def _kubelet_json(self) -> str:
        pki = self.authority
        return json.dumps(
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "failCgroupV1": False,
                "failSwapOn": False,
                "cgroupDriver": "cgroupfs",
                "cgroupRoot": f"/{self.cgroup}",
                "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
                "resolvConf": "",
                "clusterDomain": "cluster.local",
                "authentication": {
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(pki.ca)},
                },
                "authorization": {"mode": "Webhook"},
                "tlsCertFile": str(pki.certificate(self.name)),
                "tlsPrivateKeyFile": str(pki.key(self.name)),
                "rotateCertificates": False,
                "makeIPTablesUtilChains": False,
                # Images come from no registry: once collected they could not be fetched again.
                "imageGCHighThresholdPercent": 100,
                "imageGCLowThresholdPercent": 99,
                "evictionHard": {
                    "memory.available": "100Mi",
                    "nodefs.available": "1%",
                    "imagefs.available": "1%",
                },
                "nodeStatusUpdateFrequency": "5s",
                "nodeLeaseDurationSeconds": 20,
                "syncFrequency": "10s",
                "volumePluginDir": str(self.directory / "volume-plugins"),
                "maxPods": 50,
            },
            indent=1,
        )

    def containerd(self) -> Component:
        """Return the container runtime."""
        binary = self.toolchain.path("containerd")
        argv = (str(binary), f"--config={self.directory / 'containerd.toml'}")
        shim = self.toolchain.path("containerd-shim-runsc-v1").parent
        path = f"{shim}:{binary.parent}:{SYSTEM_PATH}"
        return Component(
            name="containerd",
            argv=argv,
            env={**ENVIRONMENT, "PATH": path},
            config=(self.directory / "containerd.toml",),
        )

    def kubelet(self) -> Component:
        """Return the kubelet."""
        argv = (
            str(self.toolchain.path("kubelet")),
            f"--config={self.directory / 'kubelet.json'}",
            f"--kubeconfig={self.authority.directory / f'{self.name}.kubeconfig'}",
            f"--root-dir={KUBELET_ROOT}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            "--v=2",
        )
        return Component(
            name="kubelet",
            argv=argv,
            env=ENVIRONMENT,
            after_socket=str(CONTAINERD_SOCKET),
            config=(self.directory / "kubelet.json",),
        )

    def write_agent_settings(
        self, *, kubeconfig: Path, buckets: dict[str, str], cluster_id: str
    ) -> None:
        """Write the agent's settings; ``buckets`` are those that say how buckets are reached."""
        settings = {
            "node_name": self.name,
            "kubeconfig": kubeconfig,
            "state_dir": self.directory / "podsnap",
            "socket": AGENT_SOCKET,
            "runsc": self.toolchain.path("runsc"),
            "runsc_root": RUNSC_ROOT / "k8s.io",
            "runsc_config": self.runsc_config,
            "kubelet_root": KUBELET_ROOT,
            "ctr": self.toolchain.path("ctr"),
            "containerd_address": CONTAINERD_SOCKET,
            "containerd_state": CONTAINERD_STATE,
            **buckets,
            "cluster_id": cluster_id,
            "metrics_address": f"{self.address}:{METRICS_PORT}",
            "runtime_state_dir": RUNTIME_STATE,
            "pages_cgroup": f"podsnap-{self.cluster}/pages",
            "cache_free_share": 0.0,  # it shares its disk with its owner, whose affair that is
        }
        (self.directory / "podsnap").mkdir(exist_ok=True, mode=0o700)
        # A JSON string is a TOML string, and so is a number.
        told = {k: v if isinstance(v, float) else str(v) for k, v in settings.items()}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())
        write_private(self.agent_settings, text)

    def ctr(self, *arguments: str) -> list[str]:
        """Return a command line for containerd's client, to be run inside the machine."""
        address = f"--address={CONTAINERD_SOCKET}"
        return [str(self.toolchain.path("ctr")), address, "--namespace=k8s.io", *arguments]


def _runsc_toml(runtime: Path) -> str:
    return f"""\
binary_name = "{runtime}"
root = "{RUNSC_ROOT}"
log_level = "info"
[runsc_config]
platform = "{PLATFORM}"
"""
