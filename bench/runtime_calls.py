# SPDX-License-Identifier: Apache-2.0
"""The calls that gVisor's shim makes of the OCI runtime, to be timed on the node.

What the runtime costs is what happens before it becomes runsc. So a copy of the installed runtime
is configured with a runsc that does nothing, and is compared with that same program called
directly: the difference is the runtime's alone, without runsc's own noise of tens of milliseconds.
Everything else is real: the interpreter, the specs containerd wrote, the agent's socket.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from room import BenchError

from localcluster.cluster import LocalCluster
from localcluster.node import RUNSC_ROOT
from schemas.metadata import Metadata

NOTHING = Path("/bin/true")
_PLACE = Path("/run/podsnap-bench")
_LIMIT_S = 300.0
_PROGRAM = Path(__file__).resolve().parent / "timed_calls.py"
# The interpreter that the installed runtime has too: the node's.
_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call, in variants that are run in turn; ``files`` are written before each run."""

    name: str
    variants: dict[str, list[str]]
    files: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def to_object(self) -> dict[str, Any]:
        """Render for the program on the node."""
        return {
            "name": self.name,
            "variants": self.variants,
            "files": self.files,
            "remove": list(self.remove),
            "keep": list(self.keep),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What a case took: milliseconds by variant, in order, and the files it was to keep."""

    name: str
    ms: dict[str, list[float]]
    left: dict[str, str]

    def added_ms(self, variant: str, base: str) -> list[float]:
        """Return by how much each run of a variant was slower than the base of its round."""
        return [a - b for a, b in zip(self.ms[variant], self.ms[base], strict=True)]


@dataclass(frozen=True, slots=True)
class RuntimeCalls:
    """The runtime of a cluster's first node, installed and as a copy that becomes nothing."""

    cluster: LocalCluster

    @property
    def installed(self) -> Path:
        """The runtime that the shim calls."""
        return self.cluster.nodes[0].directory / "runtime" / "podsnap-runtime"

    @property
    def runsc(self) -> Path:
        """The runsc that the installed runtime becomes."""
        return self.cluster.toolchain.path("runsc")

    @property
    def _directory(self) -> Path:
        return self.cluster.state_dir / "bench"

    @property
    def copied(self) -> Path:
        """The copy that becomes a program which does nothing."""
        return self._directory / "runtime" / "podsnap-runtime"

    def copy(self) -> None:
        """Make the copy.

        Raises:
            BenchError: the installed runtime is not there.
        """
        settings = self.installed.with_name("podsnap-runtime.conf")
        if not settings.exists():
            raise BenchError(f"{settings} is missing: podsnap is not installed on the node")
        shutil.rmtree(self.copied.parent, ignore_errors=True)
        shutil.copytree(self.installed.parent, self.copied.parent)
        # The launcher names the directory of its module.
        old, new = str(self.installed.parent), str(self.copied.parent)
        launcher = self.installed.read_text(encoding="utf-8")
        self.copied.write_text(launcher.replace(old, new), encoding="utf-8")
        lines = settings.read_text(encoding="utf-8").splitlines()
        changed = [f"runsc={NOTHING}" if line.startswith("runsc=") else line for line in lines]
        text = "\n".join(changed) + "\n"
        self.copied.with_name(settings.name).write_text(text, encoding="utf-8")

    def run(self, cases: Iterable[Case], *, rounds: int) -> list[Timed]:
        """Time the cases on the node.

        Raises:
            BenchError: a variant failed in some round.
        """
        plan = self._directory / "plan.json"
        tree = {"rounds": rounds, "cases": [case.to_object() for case in cases]}
        plan.write_text(json.dumps(tree), encoding="utf-8")
        node = self.cluster.nodes[0].name
        argv = [_PYTHON, "-IS", str(_PROGRAM), str(plan)]
        done = self.cluster.run_in(node, argv, limit_s=_LIMIT_S)
        answers: list[dict[str, Any]] = json.loads(done.stdout)
        for answer in answers:
            for variant, codes in answer["exit_codes"].items():
                if codes != [0]:
                    raise BenchError(f"{answer['name']} {variant} ended with exit codes {codes}")
        return [Timed(name=a["name"], ms=a["ms"], left=a["left"]) for a in answers]


def bundle_of(container: str) -> Path:
    """Return a bundle directory of ours for a container; it goes away with the node."""
    return _PLACE / container


def global_flags(bundle: Path, pod: Metadata) -> list[str]:
    """Return the flags that the shim puts before every subcommand."""
    log_dir = f"/var/log/pods/{pod.namespace}_{pod.name}_{pod.uid}"
    return [
        f"--root={RUNSC_ROOT / 'k8s.io'}",
        f"--log={bundle / 'log.json'}",
        "--log-format=json",
        f"--panic-log={log_dir}/gvisor_panic.log",
        "--platform=systrap",
    ]


def spec_text(spec: dict[str, Any]) -> str:
    """Render a spec as containerd does: compact."""
    return json.dumps(spec, separators=(",", ":"))
