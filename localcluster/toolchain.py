#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The real components, built from pinned Go modules.

Each folder of ``tools/`` is a Go module that pins one project; a binary lies in the cache under a
key made of the pins, the Go version and how it is built, so a changed pin builds anew and an
unchanged one costs nothing.

The trap: this file runs as ``python3 localcluster/toolchain.py build`` before any package is
installed, so it may import nothing but the standard library.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
GO_FLOOR = (1, 26)
BUILD_LIMIT_S = 3600
QUESTION_LIMIT_S = 30
TAIL_LINES = 15
CAP_SYS_RESOURCE = 24
# Part of every key: raise it when the way of building changes, the pins alone do not tell.
BUILD_FORM = "1"

# The shim lowers its OOM score and takes a refusal for fatal; without CAP_SYS_RESOURCE the kernel
# always refuses. The kubelet and runc treat the same refusal as harmless.
SHIM_FILE = "vendor/gvisor.dev/gvisor/pkg/shim/v1/manager.go"
SHIM_LINE = "if err := sys.SetOOMScore(cmd.Process.Pid, oomScoreMax); err != nil {"
SHIM_PATCHED = (
    "if err := sys.SetOOMScore(cmd.Process.Pid, oomScoreMax); err != nil && !os.IsPermission(err) {"
)


class ToolchainError(Exception):
    """A binary is missing or cannot be built."""


@dataclass(frozen=True, slots=True)
class Binary:
    """One program: its name, the module folder under ``tools/`` and the Go package."""

    name: str
    module: str
    package: str
    # With PODSNAP_USE_INSTALLED=1: how to ask for the version, and the lowest that will do.
    # A floor that ends in "=" must match exactly; no floor, no replacement.
    version_argument: str = ""
    floor: str = ""
    tags: str = ""


_KUBERNETES = "k8s.io/kubernetes/cmd"
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"

# What the local cluster is made of.
BINARIES = (
    Binary("etcd", "etcd", "go.etcd.io/etcd/server/v3", "--version", "3.5"),
    Binary("runsc", "gvisor", "gvisor.dev/gvisor/runsc"),
    Binary("containerd-shim-runsc-v1", "gvisor", "gvisor.dev/gvisor/shim"),
    Binary("containerd", "containerd", f"{_CONTAINERD}/containerd", "--version", "2.1"),
    Binary("ctr", "containerd", f"{_CONTAINERD}/ctr", "--version", "2.1"),
    Binary("bridge", "cni", f"{_CNI}/main/bridge"),
    Binary("host-local", "cni", f"{_CNI}/ipam/host-local"),
    Binary("kube-apiserver", "kubernetes", f"{_KUBERNETES}/kube-apiserver", "--version", "1.36="),
    Binary("kubelet", "kubernetes", f"{_KUBERNETES}/kubelet", "--version", "1.36="),
    Binary("kubectl", "kubernetes", f"{_KUBERNETES}/kubectl", "version", "1.35"),
    Binary("kube-scheduler", "kubernetes", f"{_KUBERNETES}/kube-scheduler", "--version", "1.36="),
    Binary(
        "kube-controller-manager",
        "kubernetes",
        f"{_KUBERNETES}/kube-controller-manager",
        "--version",
        "1.36=",
    ),
)

# What runs beside a cluster in tests/gitops; nothing else needs these.
GITOPS_BINARIES = (
    Binary("kustomize-controller", "flux", "github.com/fluxcd/kustomize-controller"),
    Binary("argocd", "argocd", "github.com/argoproj/argo-cd/v3/cmd"),
)

# What checks the alert rules, and what hands spans to the trace backend.
TELEMETRY_BINARIES = (
    # Without its service discovery: large, and no part of checking rules.
    Binary(
        "promtool",
        "prometheus",
        "github.com/prometheus/prometheus/cmd/promtool",
        tags="remove_all_sd",
    ),
    Binary("otelcol", "collector", "."),
)

# What speaks Cloud Storage's protocol for `podsnap local up --bucket gcs`.
STORAGE_BINARIES = (
    Binary("fake-gcs-server", "fake-gcs-server", "github.com/fsouza/fake-gcs-server"),
)

GROUPS = {
    "cluster": BINARIES,
    "gitops": GITOPS_BINARIES,
    "telemetry": TELEMETRY_BINARIES,
    "storage": STORAGE_BINARIES,
}


def default_cache() -> Path:
    """Return ``$PODSNAP_CACHE``, or ``podsnap`` in the user's cache directory."""
    if chosen := os.environ.get("PODSNAP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podsnap"


def lacks_sys_resource() -> bool:
    """Tell whether this process has no CAP_SYS_RESOURCE, so OOM scores cannot be lowered."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(status.partition("\nCapEff:")[2].split()[0], 16)
    return not effective >> CAP_SYS_RESOURCE & 1


def pinned(go_mod: str, module: str) -> str:
    """Return the version that a go.mod text pins for a module.

    Raises:
        ToolchainError: it pins none.
    """
    found = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if not found:
        raise ToolchainError(f"the go.mod pins no {module}; restore tools/ from the repository")
    return found[1]


def linker_flags(binary: Binary, go_mod: str) -> str:
    """Return the linker's flags: no symbols, and the version where the sources do not hold it."""
    flags = ["-s", "-w"]
    if binary.module == "kubernetes":
        version = pinned(go_mod, "k8s.io/kubernetes")
        flags.append(f"-X=k8s.io/component-base/version.gitVersion={version}")
    if binary.name == "runsc":
        # v0.0.0-20260905035102-160fafc42237 is what upstream releases as release-20260905.0
        day = pinned(go_mod, "gvisor.dev/gvisor").split("-")[1][:8]
        flags.append(f"-X=gvisor.dev/gvisor/runsc/version.version=release-{day}.0")
    return " ".join(flags)


class Toolchain:
    """The pinned binaries and where they lie."""

    def __init__(
        self,
        *,
        tools: Path = REPOSITORY / "tools",
        cache: Path | None = None,
        use_installed: bool | None = None,
    ) -> None:
        self.tools = tools
        self.cache = (cache or default_cache()).absolute() / "tools"
        if use_installed is None:
            use_installed = os.environ.get("PODSNAP_USE_INSTALLED") == "1"
        self.use_installed = use_installed
        self._go_version = ""
        self._installed: dict[str, Path | None] = {}

    def path(self, name: str) -> Path:
        """Return where a binary lies, built or to be built.

        Raises:
            ToolchainError: no such binary is known, or Go is missing or too old.
        """
        known = [binary for group in GROUPS.values() for binary in group]
        for binary in known:
            if binary.name == name:
                return self._installed_path(binary) or self._built_path(binary)
        raise ToolchainError(f"there is no tool {name!r}; known: {[b.name for b in known]}")

    def missing(self, group: str = "cluster") -> list[str]:
        """Return the names of a group's binaries that have to be built."""
        return [b.name for b in GROUPS[group] if not self.path(b.name).exists()]

    def key(self, binary: Binary) -> str:
        """Return the name of the cache folder: a digest of everything that decides the build."""
        digest = hashlib.sha256()
        module = self.tools / binary.module
        for file in (module / "go.mod", module / "go.sum", *sorted(module.glob("*.go"))):
            digest.update(file.read_bytes())
        for part in (self.go_version(), self._variant(binary) + binary.tags, BUILD_FORM):
            digest.update(b"\0" + part.encode())
        return digest.hexdigest()[:16]

    def go_version(self) -> str:
        """Return Go's version.

        Raises:
            ToolchainError: it is missing or too old.
        """
        if not self._go_version:
            floor = ".".join(map(str, GO_FLOOR))
            try:
                text = _output(["go", "env", "GOVERSION"], cwd=self.tools)
            except (OSError, subprocess.SubprocessError) as error:
                raise ToolchainError(
                    f"no Go found ({error}); install Go {floor} or newer: https://go.dev/dl/"
                ) from error
            numbers = tuple(map(int, re.findall(r"\d+", text)[:2]))
            if numbers < GO_FLOOR:
                raise ToolchainError(
                    f"found {text.strip()}, the components need Go {floor} or newer: "
                    "https://go.dev/dl/"
                )
            self._go_version = text.strip()
        return self._go_version

    def build(self, progress: Callable[[str], None], group: str = "cluster") -> None:
        """Build what is missing of a group, one binary at a time.

        Raises:
            ToolchainError: with the end of the output, the log's path and what to do.
        """
        if not self.missing(group):
            return
        self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self.cache / "lock", progress):
            for leftover in self.cache.glob("building-*"):  # of a builder that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            missing = [b for b in GROUPS[group] if b.name in self.missing(group)]
            for number, binary in enumerate(missing, start=1):
                progress(f"building {binary.name} ({number} of {len(missing)})")
                self._build(binary, progress)

    def _build(self, binary: Binary, progress: Callable[[str], None]) -> None:
        began_s = time.monotonic()
        target = self._built_path(binary)
        log = self.cache / f"{binary.name}.log"
        go_mod = (self.tools / binary.module / "go.mod").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="building-", dir=self.cache) as scratch:
            source, mode = self.tools / binary.module, "-mod=readonly"
            if self._variant(binary):
                source, mode = self._patched_source(Path(scratch), source, log), "-mod=vendor"
            output = Path(scratch) / "output"
            flags = linker_flags(binary, go_mod)
            command = ["go", "build", mode, "-tags", binary.tags, "-trimpath", "-ldflags", flags]
            _run([*command, "-o", str(output), binary.package], cwd=source, log=log)
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            output.rename(target)
        progress(f"built {binary.name} in {time.monotonic() - began_s:.0f} s")

    def _patched_source(self, scratch: Path, module: Path, log: Path) -> Path:
        copy = scratch / "module"
        copy.mkdir()
        for name in ("go.mod", "go.sum"):
            shutil.copy(module / name, copy)
        _run(["go", "mod", "vendor"], cwd=copy, log=log)
        file = copy / SHIM_FILE
        text = file.read_text(encoding="utf-8")
        if (count := text.count(SHIM_LINE)) != 1:
            raise ToolchainError(
                f"{SHIM_FILE} holds the line to be patched {count} times, not once: the pinned "
                "gVisor changed; adapt SHIM_LINE in localcluster/toolchain.py, or run where "
                "CAP_SYS_RESOURCE is granted"
            )
        file.write_text(text.replace(SHIM_LINE, SHIM_PATCHED), encoding="utf-8")
        return copy

    def _variant(self, binary: Binary) -> str:
        patched = binary.name == "containerd-shim-runsc-v1" and lacks_sys_resource()
        return "without-sys-resource" if patched else ""

    def _built_path(self, binary: Binary) -> Path:
        return self.cache / binary.module / self.key(binary) / binary.name

    def _installed_path(self, binary: Binary) -> Path | None:
        if not self.use_installed or not binary.floor:
            return None
        if binary.name not in self._installed:
            self._installed[binary.name] = _installed(binary)
        return self._installed[binary.name]


def good_enough(version: str, floor: str) -> bool:
    """Tell whether a version fits a floor: "2.1" means at least, "1.36=" means this minor."""
    found = [int(n) for n in re.findall(r"\d+", version)[:2]]
    wanted = [int(n) for n in re.findall(r"\d+", floor)[:2]]
    return found == wanted if floor.endswith("=") else found >= wanted


def _installed(binary: Binary) -> Path | None:
    place = shutil.which(binary.name)
    if place is None:
        return None
    try:
        text = _output([place, binary.version_argument, *_EXTRA.get(binary.name, ())])
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"v?(\d+\.\d+)\.\d+", text)
    fits = version is not None and good_enough(version[1], binary.floor)
    return Path(place).resolve() if fits else None


_EXTRA = {"kubectl": ("--client",)}


def _environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


def _output(argv: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=QUESTION_LIMIT_S,
    )
    return done.stdout


def _run(argv: list[str], *, cwd: Path, log: Path) -> None:
    with log.open("w", encoding="utf-8") as output:
        try:
            code = subprocess.run(
                argv,
                cwd=cwd,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=BUILD_LIMIT_S,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        tail = "\n  ".join(lines) or "(no output)"
        raise ToolchainError(
            f"{' '.join(argv)} failed ({code}):\n  {tail}\nwhole output: {log}\n"
            "if a download failed, check that Go's module proxy (go env GOPROXY) can be reached; "
            "if the disk is full, free 8 GB; then run it again: what is built stays"
        )


@contextmanager
def _locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting: another process builds")
            fcntl.flock(lock, fcntl.LOCK_EX)  # bounded by the builder's own limits
        yield


def main(arguments: list[str]) -> int:
    """Run ``build [GROUP]``, or list where everything lies."""
    toolchain = Toolchain()
    try:
        match arguments:
            case ["build", *rest] if rest in ([], *([group] for group in GROUPS)):
                group = rest[0] if rest else "cluster"
                began_s = time.monotonic()
                toolchain.build(lambda line: print(line, flush=True), group)
                took = f"{time.monotonic() - began_s:.1f} s"
                print(f"all {len(GROUPS[group])} tools of the {group} are there ({took})")
            case ["list"]:
                for group, binaries in GROUPS.items():
                    missing = toolchain.missing(group)
                    for binary in binaries:
                        state = "missing" if binary.name in missing else "there"
                        print(f"{binary.name:26} {state:8} {toolchain.path(binary.name)}")
            case _:
                groups = " | ".join(GROUPS)
                print(f"usage: toolchain.py build [{groups}] | list", file=sys.stderr)
                return 2
    except ToolchainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
