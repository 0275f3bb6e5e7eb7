# SPDX-License-Identifier: Apache-2.0
"""The real cluster: up, a gVisor Pod, crashes, down, nothing left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from localcluster import images
from localcluster.cluster import ClusterError, LocalCluster
from localcluster.machine import RunningComponent
from localcluster.toolchain import REPOSITORY, default_cache

pytestmark = pytest.mark.cluster
Eventually = Callable[[Callable[[], bool], str], None]

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "counter"},
    "spec": {
        "runtimeClassName": "gvisor",
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": "app",
                "image": "podsnap.local/counter:1",
                "imagePullPolicy": "Never",
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            }
        ],
    },
}


def traces(cluster: LocalCluster) -> dict[str, list[str]]:
    """Return everything on the host that bears the marks of this cluster."""
    net = cluster.network
    state = str(cluster.state_dir)
    links = json.loads(subprocess.check_output(["ip", "-json", "link"], text=True))
    routes = json.loads(subprocess.check_output(["ip", "-json", "route"], text=True))
    ours = {net.bridge, *(machine.link.veth for machine in cluster.machines())}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    groups = Path("/sys/fs/cgroup").glob(f"**/podsnap-{cluster.name}")
    processes = subprocess.check_output(["ps", "-eo", "args="], text=True).splitlines()
    return {
        "links": [row["ifname"] for row in links if row["ifname"] in ours],
        "routes": [row["dst"] for row in routes if row["dst"].startswith(str(net.block)[:-6])],
        "mounts": [line for line in mounts if state in line],
        "control groups": [str(path) for path in groups],
        "processes": [line for line in processes if state in line],
        "state": [state] if cluster.state_dir.exists() else [],
    }


def nothing() -> dict[str, list[str]]:
    """Return what ``traces`` says of a cluster that is not there."""
    kinds = ("links", "routes", "mounts", "control groups", "processes", "state")
    return {kind: [] for kind in kinds}


def start_pod(cluster: LocalCluster) -> None:
    """Have the example Pod Ready."""
    recipe = REPOSITORY / "examples" / "counter"
    image = images.build_image(recipe, cache=default_cache(), progress=lambda _line: None)
    cluster.load(image.archive)
    cluster.kubectl("apply", "-f", "-", text=json.dumps(POD))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/counter", "--timeout=30s")


def test_a_gvisor_pod_runs_answers_and_leaves_nothing_after_down(cluster: LocalCluster) -> None:
    """The life of a cluster as a user sees it."""
    cluster.up(with_programs=False)
    start_pod(cluster)
    assert "count" in cluster.kubectl("logs", "counter")
    version = cluster.kubectl("exec", "counter", "--", "/bin/cat", "/proc/version")
    assert "gvisor" in version
    cluster.kubectl("delete", "pod", "counter", "--wait", "--timeout=30s")
    cluster.down()
    assert traces(cluster) == nothing()
    cluster.down()
    assert traces(cluster) == nothing()


def test_a_second_up_changes_nothing_and_is_quick(cluster: LocalCluster) -> None:
    """When all is up, `up` is a check."""
    cluster.up(with_programs=False)
    before = {(s.machine, s.name, s.pid) for s in cluster.status()}
    began_s = time.monotonic()
    cluster.up(with_programs=False)
    assert time.monotonic() - began_s < 1.5
    assert {(s.machine, s.name, s.pid) for s in cluster.status()} == before


@pytest.mark.parametrize("machine", ["control-plane", "node1"])
def test_up_after_a_killed_supervisor_brings_the_pods_back(
    cluster: LocalCluster, machine: str, eventually: Eventually
) -> None:
    """A lost machine is started anew, what etcd held is still there, and Pods run again."""
    cluster.up(with_programs=False)
    start_pod(cluster)
    os.kill(cluster.machine(machine).pid(), signal.SIGKILL)
    eventually(lambda: not cluster.machine(machine).is_alive(), "the machine is gone")
    cluster.up(with_programs=False)

    def answers() -> bool:
        with contextlib.suppress(ClusterError):
            return "gvisor" in cluster.kubectl("exec", "counter", "--", "/bin/cat", "/proc/version")
        return False

    eventually(answers, "the Pod runs again")


@pytest.mark.parametrize("after_line", ["machines", "containerd", "API server"])
def test_up_converges_after_it_was_killed(cluster: LocalCluster, after_line: str) -> None:
    """Killed at any step, the next `up` goes on, and `down` removes all."""
    script = (
        "import sys; from pathlib import Path; from localcluster.cluster import LocalCluster\n"
        "def tell(line): print(line, flush=True)\n"
        "LocalCluster(sys.argv[1], root=Path(sys.argv[2]), progress=tell).up(with_programs=False)"
    )
    argv = [sys.executable, "-c", script, cluster.name, str(cluster.root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if after_line in line:
                first.kill()
                break
    cluster.up(with_programs=False)
    with contextlib.closing(cluster.api()) as api:
        assert api.node_is_ready("node1", since=datetime.fromtimestamp(0, UTC))
    cluster.down()
    assert traces(cluster) == nothing()


def test_down_finds_the_machines_of_a_cluster_whose_state_was_deleted(
    cluster: LocalCluster,
) -> None:
    """Somebody removed the directory by hand: the processes are still found and ended."""
    cluster.up(with_programs=False)
    # It may fail on files that the living components make meanwhile, as it would for that somebody.
    subprocess.run(["rm", "-rf", str(cluster.state_dir)], check=False, timeout=30)
    assert not (cluster.state_dir / "node1" / "lock").exists()
    cluster.down()
    assert traces(cluster) == nothing()


def test_what_was_settled_at_the_first_up_cannot_change(cluster: LocalCluster) -> None:
    """Other addresses, nodes or another kind of bucket are refused, with what to do."""
    cluster.up(with_programs=False)
    for change in ({"block": "10.231.0.0/16"}, {"nodes": 2}, {"bucket": "gcs"}):
        with pytest.raises(ClusterError, match=f"podsnap local down --name {cluster.name}"):
            cluster.up(with_programs=False, **change)


def test_pods_of_two_nodes_reach_each_other(cluster: LocalCluster, eventually: Eventually) -> None:
    """Each node is a machine; the bridge and routes join their Pods."""
    cluster.up(nodes=2, with_programs=False)
    start_pod(cluster)
    there = cluster.kubectl("get", "pod", "counter", "-o", "jsonpath={.spec.nodeName}")
    address = cluster.kubectl("get", "pod", "counter", "-o", "jsonpath={.status.podIP}")
    other = "node2" if there == "node1" else "node1"
    client = json.loads(json.dumps(POD))
    client["metadata"]["name"] = "client"
    client["spec"]["nodeName"] = other
    cluster.kubectl("apply", "-f", "-", text=json.dumps(client))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=30s")
    fetch = ("/bin/wget", "-qO-", f"http://{address}:8080/")
    answer = json.loads(cluster.kubectl("exec", "client", "--", *fetch))
    assert answer["hostname"] == "counter"


def test_podsnaps_programs_have_their_own_identities_and_survive_sigkill(
    cluster: LocalCluster, eventually: Eventually
) -> None:
    """They run as service accounts, never as administrators; an agent's names its node too."""
    cluster.up()
    node_name = "{.status.userInfo.extra['authentication\\.kubernetes\\.io/node-name'][0]}"
    form = "jsonpath={.status.userInfo.username} " + node_name
    for program, machine, at in (("controller", "control-plane", ""), ("agent", "node1", "node1")):
        file = f"podsnap-{program}-{at}" if at else f"podsnap-{program}"
        kubeconfig = cluster.authority.directory / f"{file}.kubeconfig"
        who = cluster.kubectl("auth", "whoami", f"--kubeconfig={kubeconfig}", "-o", form)
        assert who == f"system:serviceaccount:podsnap-system:podsnap-{program} {at}"
        component = cluster.component(machine, program)
        first = component.status().pid
        component.kill()

        def is_back(component: RunningComponent = component, first: int = first) -> bool:
            status = component.status()
            return status.state == "running" and status.pid != first

        eventually(is_back, f"{program} is back")


def test_down_leaves_no_empty_folder_and_takes_no_full_one(tmp_path: Path) -> None:
    """What up would have made for the first cluster goes with the last."""
    root = tmp_path / "clusters"
    LocalCluster("gone", root=root).down()

    assert not root.exists()

    (root / "other").mkdir(parents=True)
    LocalCluster("gone", root=root).down()

    assert (root / "other").is_dir()
