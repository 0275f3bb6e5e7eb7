# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a slow Pod, saved once and restored twice, on a real local cluster.

Everything shown is asked of the cluster while it happens. The cluster stays up afterwards; running
this again starts the story over in the same cluster.
"""

import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from localcluster.cluster import ClusterError, LocalCluster
from localcluster.images import build_image, default_cache
from localcluster.machine import MachineError
from localcluster.network import NetworkError
from localcluster.object_server import ObjectServerError, make_bucket
from localcluster.pod_times import Observed, PodTimes, PodWaitError, watching
from localcluster.preflight import PreflightError
from localcluster.toolchain import ToolchainError

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "demo"
NAMESPACE = "demo"
BUCKET = "demo-snapshots"
QUERY = "play music"
COLD_LIMIT_S = 300
RESTORED_LIMIT_S = 60
SAVE_LIMIT_S = 60


class DemoError(Exception):
    """The demo did not show what it should; the text says what was seen."""


def title(text: str) -> None:
    """Begin a part of the story."""
    click.echo()
    click.secho(f"== {text}", bold=True)


def say(text: str) -> None:
    """Tell one thing."""
    click.echo(f"   {text}")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Tell how long something took."""
    began_s = time.monotonic()
    yield
    say(f"{time.monotonic() - began_s:5.1f} s  {what}")


class Demo:
    """The story, in order."""

    def __init__(
        self,
        cluster: LocalCluster,
        results: Path = BUILD,
        bucket: Literal["directory", "gcs"] | None = None,
    ) -> None:
        """Nothing happens yet; ``results`` is where result.json goes.

        ``bucket`` is what the cluster's buckets are to be, or whatever they are.
        """
        self.cluster = cluster
        self.bucket = bucket
        self.results = results
        self.repository = cluster.state_dir / "demo" / "policies"
        self.result: dict[str, Any] = {}

    def kubectl(self, *arguments: str, text: str = "", limit_s: float = 60) -> str:
        """Run kubectl in the demo's namespace."""
        return self.cluster.kubectl("-n", NAMESPACE, *arguments, text=text, limit_s=limit_s)

    def show(self, *arguments: str) -> None:
        """Show a kubectl command and what it prints."""
        click.secho(f"   $ kubectl -n {NAMESPACE} {' '.join(arguments)}", dim=True)
        for line in self.kubectl(*arguments).splitlines():
            say(line)

    def run(self) -> None:
        """Tell it all."""
        title("A real cluster: kube-apiserver, kubelet, containerd, gVisor, podsnap")
        self.cluster.up(bucket=self.bucket)
        where = self.cluster.bucket_endpoint
        kind = f"at {where}, over Cloud Storage's protocol" if where else "is a directory"
        say(f"bucket {BUCKET} {kind}")
        self.result["bucket_endpoint"] = where
        self.load_images()
        self.start_over()
        with watching(self.cluster.kubeconfig, NAMESPACE) as times:
            self.sync_policies()
            cold = self.start_cold(times)
            snapshot = self.wait_saved(times)
            restored = self.scale_out(times)
            self.compare(cold, restored, snapshot)
            self.count(times)
            self.trace(snapshot)
        self.write_result()
        self.finish()

    # -- before the story

    def load_images(self) -> None:
        """Build the examples' images and hand them to the node."""
        make_bucket(self.cluster, BUCKET)
        for example in ("semantic-search", "counter"):
            image = build_image(HERE / example, cache=default_cache(), progress=say)
            with timed(f"image {image.ref} loaded, {image.layer_bytes / 1e6:.0f} MB"):
                self.cluster.load(image.archive)

    def start_over(self) -> None:
        """Remove what an earlier run left, with its snapshots."""
        with timed(f"namespace {NAMESPACE} is empty"):
            flags = ("--ignore-not-found", "--wait", "--timeout=120s")
            self.cluster.kubectl("delete", "namespace", NAMESPACE, *flags, limit_s=130)
            self.cluster.kubectl("create", "namespace", NAMESPACE)

    # -- the story

    def sync_policies(self, example: str = "semantic-search") -> None:
        """Commit the policies of an example, and let the controller fetch them from Git."""
        title("Policies come from Git")
        shutil.rmtree(self.repository, ignore_errors=True)
        shutil.copytree(HERE / example / "policies", self.repository / "policies")
        shutil.copy(HERE / example / "deployment.yaml", self.repository)
        author = ("-c", "user.name=podsnap demo", "-c", "user.email=demo@podsnap.invalid")
        for command in (
            ("init", "--quiet", "--initial-branch=main"),
            ("add", "--all"),
            (*author, "commit", "--quiet", f"--message=Snapshot policies of {example}"),
        ):
            git(self.repository, *command)
        commit = git(self.repository, "rev-parse", "HEAD").strip()
        self.result["git_commit"] = commit
        say(f"commit {commit[:12]} in {self.repository}")
        source = {
            "apiVersion": "podsnap.dev/v1alpha1",
            "kind": "GitSource",
            "metadata": {"name": "policies", "namespace": NAMESPACE},
            "spec": {
                "url": f"file://{self.repository}",
                "ref": {"branch": "main"},
                "path": "policies",
                "interval": "10s",
            },
        }
        self.kubectl("apply", "-f", "-", text=json.dumps(source))
        self.kubectl("wait", "--for=condition=Ready", "gitsource/policies", "--timeout=30s")
        self.show("get", "gitsource,psp")

    def start_cold(self, times: PodTimes) -> Observed:
        """Start the one Pod that has to do all the work."""
        title("The first Pod starts cold: it loads a model and embeds 2,000 texts")
        self.kubectl("apply", "-f", str(self.repository / "deployment.yaml"))
        self.watch_snapshots()
        told_s = 0.0

        def tick(waited_s: float) -> None:
            nonlocal told_s
            if waited_s - told_s >= 5:  # noqa: PLR2004 - seconds between two lines
                told_s = waited_s
                say(f"{waited_s:5.1f} s  {self.last_log('semantic-search')}")

        (cold,) = times.wait_ready("semantic-search", 1, limit_s=COLD_LIMIT_S, tick=tick)
        self.result["cold_ready_s"] = round(cold.create_to_ready_s, 3)
        say(f"{cold.create_to_ready_s:5.1f} s  Ready")
        return cold

    def last_log(self, app: str) -> str:
        """Return the newest line of an app's log."""
        try:
            text = self.kubectl("logs", f"--selector=app={app}", "--tail=1")
        except ClusterError:
            return "(no log yet)"
        return text.strip() or "(no log yet)"

    def watch_snapshots(self) -> None:
        """Keep what ``kubectl get ps -w`` prints, to show each state as it was seen."""
        kubectl = str(self.cluster.toolchain.path("kubectl"))
        argv = [kubectl, f"--kubeconfig={self.cluster.kubeconfig}", "-n", NAMESPACE]
        self.watch = subprocess.Popen(
            [*argv, "get", "ps", "--watch"], stdout=subprocess.PIPE, text=True
        )
        self.watched: list[str] = []

        def read() -> None:
            for line in self.watch.stdout or ():
                columns = line.split()
                if not self.watched or columns[:2] != self.watched[-1].split()[:2]:
                    self.watched.append(line.rstrip())

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()

    def wait_saved(self, times: PodTimes) -> dict[str, Any]:
        """Wait until the Pod has saved itself and the bytes are in the bucket."""
        title("Now that it is warm, it saves itself: it writes 1 to /proc/gvisor/checkpoint")

        def saved() -> dict[str, Any] | None:
            items = json.loads(self.kubectl("get", "ps", "-o", "json"))["items"]
            ready = [i for i in items if is_true(i, "Ready")]
            return ready[0] if ready else None

        snapshot: dict[str, Any] = times.wait("the snapshot", saved, limit_s=SAVE_LIMIT_S)
        self.watch.terminate()
        self.reader.join(10)
        self.watch.communicate(timeout=10)
        click.secho(f"   $ kubectl -n {NAMESPACE} get ps --watch", dim=True)
        for line in self.watched:
            say(line)
        return snapshot

    def scale_out(self, times: PodTimes) -> list[Observed]:
        """Start two more replicas."""
        title("Two more replicas are restored, not started")
        self.kubectl("scale", "deployment/semantic-search", "--replicas=3")
        pods = times.wait_ready("semantic-search", 3, limit_s=RESTORED_LIMIT_S)
        restored = [p for p in pods if p.is_restored]
        if len(restored) != 2:  # noqa: PLR2004 - of three
            self.show("get", "events", "--field-selector=reason=GKEPodSnapshotting")
            raise DemoError(f"{len(restored)} of 2 new Pods were restored; the events say why")
        for pod in restored:
            say(f"{pod.create_to_ready_s:5.1f} s  {pod.pod.metadata.name} Ready")
        return restored

    def compare(self, cold: Observed, restored: list[Observed], snapshot: dict[str, Any]) -> None:
        """Ask every Pod the same, and show what is equal and what is not."""
        title(f"All three are asked for: {QUERY}")
        rows, nonces, answers, addresses = [], set(), set(), set()
        for pod in (cold, *restored):
            address = pod.pod.pod_ip
            found = ask(f"http://{address}:8080/search?q={QUERY.replace(' ', '+')}&k=1")
            best = found["results"][0]
            nonces.add(found["nonce"])
            answers.add((best["name"], round(best["score"], 4)))
            addresses.add(address)
            kind = "restored" if pod.is_restored else "cold"
            rows.append(
                (
                    pod.pod.metadata.name,
                    kind,
                    f"{pod.create_to_ready_s:.1f} s",
                    address,
                    found["hostname"],
                    found["nonce"],
                    f"{best['name']} {best['score']:.3f}",
                )
            )
        table(("POD", "START", "READY", "IP", "HOSTNAME", "NONCE", "BEST ANSWER"), rows)
        info = ask(f"http://{restored[0].pod.pod_ip}:8080/info")
        median_s = statistics.median(p.create_to_ready_s for p in restored)
        size_bytes = snapshot["status"]["podsnap"]["capture"]["sizeBytes"]
        self.result |= {
            "restored_ready_s": round(median_s, 3),
            "same_nonce": len(nonces) == 1,
            "same_answer": len(answers) == 1,
            "pod_ip_changed": len(addresses) == len(rows),
            "restored_before_ready": all(p.restored_when_ready for p in restored),
            "snapshot_bytes": size_bytes,
            "weights_bytes_unpacked": info["weights_bytes_unpacked"],
            "weights_bytes_left": info["weights_bytes_left"],
        }
        say("")
        say(
            f"cold {self.result['cold_ready_s']:.1f} s, restored {median_s:.1f} s: "
            f"{self.result['cold_ready_s'] / median_s:.0f} times faster"
        )
        say(
            f"the image has {size_bytes / 1e6:.0f} MB; {info['weights_bytes_unpacked'] / 1e6:.0f} "
            f"MB of weights were deleted before the save, {info['weights_bytes_left']} bytes left"
        )
        self.show("get", "events", "--field-selector=reason=GKEPodSnapshotting")
        self.ask_podsnap("story", snapshot["metadata"]["name"])

    def ask_podsnap(self, command: str, snapshot: str) -> None:
        """Show what podsnap tells of a snapshot."""
        click.secho(f"   $ podsnap {command} {snapshot[:8]} -n {NAMESPACE}", dim=True)
        argv = [str(Path(sys.executable).parent / "podsnap"), command, snapshot]
        done = subprocess.run(
            [*argv, "-n", NAMESPACE, f"--kubeconfig={self.cluster.kubeconfig}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        for line in done.stdout.splitlines():
            say(line)

    def count(self, times: PodTimes) -> None:
        """Do the same in seconds, with a manual trigger."""
        title("The same with a tiny counter and a PodSnapshotManualTrigger")
        example = HERE / "counter"
        self.kubectl("apply", "-f", str(example / "policies"))
        self.kubectl("apply", "-f", str(example / "deployment.yaml"))
        (first,) = times.wait_ready("counter", 1, limit_s=RESTORED_LIMIT_S)
        before = ask(f"http://{first.pod.pod_ip}:8080/")
        trigger = {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotManualTrigger",
            "metadata": {"name": "counter-now", "namespace": NAMESPACE},
            "spec": {"targetPod": first.pod.metadata.name},
        }
        with timed("trigger complete"):
            self.kubectl("apply", "-f", "-", text=json.dumps(trigger))
            limit = f"--timeout={SAVE_LIMIT_S}s"
            self.kubectl("wait", "--for=condition=Triggered", "psmt/counter-now", limit)
        name = self.kubectl("get", "psmt/counter-now", "-o=jsonpath={.status.snapshotCreated.name}")
        self.kubectl("wait", "--for=condition=Ready", f"podsnapshot/{name}", limit)
        self.kubectl("scale", "deployment/counter", "--replicas=2")
        pods = times.wait_ready("counter", 2, limit_s=RESTORED_LIMIT_S)
        second = next(p for p in pods if p.pod.metadata.uid != first.pod.metadata.uid)
        after = ask(f"http://{second.pod.pod_ip}:8080/")
        table(
            ("POD", "START", "READY", "COUNT", "NONCE"),
            [
                (o.pod.metadata.name, kind, f"{o.create_to_ready_s:.1f} s", a["count"], a["nonce"])
                for o, a, kind in ((first, before, "cold"), (second, after, "restored"))
            ],
        )
        self.result["counter_restored_ready_s"] = round(second.create_to_ready_s, 3)
        if after["nonce"] != before["nonce"]:
            raise DemoError("the second counter has another nonce: it was not restored")

    def trace(self, snapshot: dict[str, Any]) -> None:
        """Draw the life of the snapshot, from the commit to the Pods that came from it."""
        title("One trace: the commit, the save, the restores")
        self.ask_podsnap("trace", snapshot["metadata"]["name"])

    def write_result(self) -> None:
        """Keep the figures for scripts."""
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / "result.json"
        path.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        wrong = [k for k in ("same_nonce", "same_answer", "pod_ip_changed") if not self.result[k]]
        if wrong:
            raise DemoError(f"not as it should be: {', '.join(wrong)}; see {path}")

    def finish(self) -> None:
        """Say what to try next."""
        title("The cluster stays up. Try:")
        say(f"export KUBECONFIG={self.cluster.kubeconfig}")
        say(f"{self.cluster.toolchain.path('kubectl')} -n {NAMESPACE} get ps,psp,pods")
        say(f"figures: {self.results / 'result.json'}; remove everything: make demo-down")


def git(repository: Path, *arguments: str) -> str:
    """Run git in a repository, whatever the user has configured."""
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if done.returncode:
        raise DemoError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def ask(url: str) -> dict[str, Any]:
    """Return the JSON that a Pod answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - made from a Pod's address
        parsed: dict[str, Any] = json.load(answer)
        return parsed


def is_true(obj: dict[str, Any], condition: str) -> bool:
    """Whether a condition of an object holds."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print a small table."""
    widths = [max(len(str(c)) for c in column) for column in zip(header, *rows, strict=True)]
    for line in (header, *rows):
        say("  ".join(str(c).ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


@click.command()
@click.option("--bucket", type=click.Choice(["directory", "gcs"]))
def main(bucket: Literal["directory", "gcs"] | None) -> None:
    """Run the demo; exit with 1 if it failed, with the cause, where to look and what to do."""
    cluster = LocalCluster(progress=say)
    began_s = time.monotonic()
    try:
        Demo(cluster, bucket=bucket).run()
    except (
        ClusterError,
        DemoError,
        MachineError,
        NetworkError,
        ObjectServerError,
        OSError,
        PodWaitError,
        PreflightError,
        ToolchainError,
        subprocess.SubprocessError,
    ) as error:
        click.secho(f"\nThe demo failed: {error}", fg="red", err=True)
        click.echo(
            f"Logs: {cluster.logs} (start with agent.log and kubelet.log).\n"
            "Then `make demo` again, or `make demo-down` to remove everything.",
            err=True,
        )
        sys.exit(1)
    say(f"{time.monotonic() - began_s:.0f} s in all")


if __name__ == "__main__":
    main()
