# SPDX-License-Identifier: Apache-2.0
"""A machine's supervisor, in a real machine with real processes."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from localcluster.machine import Component, ComponentStatus, Machine, MachineError

Eventually = Callable[[Callable[[], bool], str], None]
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def sleeper(*script: str) -> Component:
    """Return a component that runs a shell script, or sleeps."""
    argv = ("/bin/sh", "-c", *script) if script else ("/bin/sleep", "1000")
    return Component(name="sleeper", argv=argv, env=ENV)


def status_of(machine: Machine) -> ComponentStatus:
    """Return the only component's status."""
    (status,) = machine.status()
    return status


def run(machine: Machine, *argv: str) -> str:
    """Run a command in the machine."""
    return subprocess.run(
        machine.enter(list(argv)), capture_output=True, text=True, check=True, timeout=10
    ).stdout


def test_a_killed_component_comes_back(lone_machine: Machine, eventually: Eventually) -> None:
    """SIGKILL ends the process, the supervisor starts another."""
    lone_machine.ensure(sleeper())
    eventually(lambda: status_of(lone_machine).state == "running", "running")
    first = status_of(lone_machine).pid
    lone_machine.signal("sleeper", signal.SIGKILL)
    eventually(lambda: status_of(lone_machine).pid not in {0, first}, "a new process")
    assert status_of(lone_machine).restarts == 1
    assert status_of(lone_machine).last_exit is None or status_of(lone_machine).last_exit == -9


def test_a_stopped_component_stays_stopped_until_started(
    lone_machine: Machine, eventually: Eventually
) -> None:
    """Tests rely on it: an agent that is stopped stays away."""
    lone_machine.ensure(sleeper())
    eventually(lambda: status_of(lone_machine).state == "running", "running")
    lone_machine.stop("sleeper")
    assert status_of(lone_machine).state == "stopped"
    lone_machine.start_again("sleeper")
    eventually(lambda: status_of(lone_machine).state == "running", "running again")
    assert status_of(lone_machine).restarts == 0


def test_a_component_that_dies_at_once_is_started_ever_more_slowly(
    lone_machine: Machine, eventually: Eventually
) -> None:
    """A broken component does not spin, and its log says why."""
    lone_machine.ensure(sleeper("echo broken; exit 3"))
    eventually(lambda: status_of(lone_machine).restarts >= 3, "three attempts")
    assert status_of(lone_machine).last_exit == 3
    log = (lone_machine.logs / "sleeper.log").read_text()
    assert log.splitlines() == ["broken"] * status_of(lone_machine).restarts
    told = (lone_machine.logs / "supervisor-lone.log").read_text()
    assert "starts again in 0.2 s" in told
    assert "starts again in 0.4 s" in told


def test_orphans_are_reaped(lone_machine: Machine, eventually: Eventually) -> None:
    """Containerd's shims outlive their parents; when they end, nothing of them stays."""
    script = "for i in 1 2 3 4 5; do (setsid sleep 0.05 &) ; done; exec sleep 1000"
    lone_machine.ensure(sleeper(script))

    def only_the_two() -> bool:
        states = run(lone_machine, "ps", "-eo", "stat=,comm=").splitlines()
        sleeping = [line for line in states if "sleep" in line]
        return len(sleeping) == 1 and not any(line.startswith("Z") for line in states)

    eventually(only_the_two, "no zombies and one sleep")


def test_a_changed_description_replaces_the_process(
    lone_machine: Machine, eventually: Eventually
) -> None:
    """`up` converges: the same description changes nothing, another one restarts."""
    assert lone_machine.ensure(sleeper()) is True
    eventually(lambda: status_of(lone_machine).state == "running", "running")
    assert lone_machine.ensure(sleeper()) is False
    assert lone_machine.ensure(sleeper("exec sleep 2000")) is True
    eventually(lambda: status_of(lone_machine).state == "running", "running")
    assert "2000" in run(lone_machine, "ps", "-eo", "args=")


def test_a_component_waits_for_the_socket_it_needs(
    lone_machine: Machine, eventually: Eventually
) -> None:
    """The kubelet is started when containerd answers, not before."""
    needs = Component(
        name="sleeper",
        argv=("/bin/sleep", "1000"),
        env=ENV,
        after_socket="/run/provider.sock",
    )
    lone_machine.ensure(needs)
    assert status_of(lone_machine).state == "waiting"
    listen = (
        "import socket,time\ns=socket.socket(socket.AF_UNIX)\n"
        "s.bind('/run/provider.sock')\ns.listen()\ntime.sleep(1000)"
    )
    provider = Component(name="provider", argv=("/usr/bin/python3", "-c", listen), env=ENV)
    lone_machine.ensure(provider)
    eventually(lambda: all(s.state == "running" for s in lone_machine.status()), "both run")


def test_killing_the_supervisor_ends_everything_in_the_machine(lone_machine: Machine) -> None:
    """The kernel cleans up: processes, mounts and interfaces end with process 1."""
    lone_machine.ensure(sleeper("exec sleep 123456"))
    inside = int(Path(f"/proc/{lone_machine.pid()}/stat").read_text().split()[0])
    assert inside == lone_machine.pid()
    lone_machine.kill()
    assert not lone_machine.is_alive()
    assert "sleep 123456" not in subprocess.check_output(["ps", "-eo", "args="], text=True)
    assert lone_machine.start() is True
    assert lone_machine.status() == []


def test_the_machine_writes_nothing_into_the_hosts_directories(lone_machine: Machine) -> None:
    """Its /run, /var/lib and /var/log are its own, while its state stays on the disk."""
    for place in ("/run", "/var/lib", "/var/log"):
        run(lone_machine, "touch", f"{place}/podsnap-was-here")
        assert not Path(place, "podsnap-was-here").exists()
    assert (lone_machine.directory / "log" / "podsnap-was-here").exists()


def test_an_unknown_component_is_refused_with_the_known_ones(lone_machine: Machine) -> None:
    """A typing error is told, with what there is."""
    lone_machine.ensure(sleeper())
    with pytest.raises(MachineError, match="no component 'sleepr'; there are: sleeper"):
        lone_machine.stop("sleepr")


def test_the_socket_is_for_root_alone(lone_machine: Machine) -> None:
    """Whoever speaks to the supervisor commands the machine."""
    socket = lone_machine.directory / "supervisor.sock"
    assert socket.stat().st_mode & 0o077 == 0
    assert lone_machine.directory.stat().st_mode & 0o077 == 0
