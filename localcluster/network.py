# SPDX-License-Identifier: Apache-2.0
"""The cluster's network: one bridge on the host, one cable to each machine.

A cluster owns one /16: machines in its first /24, node N's Pods in its N-th /24, services in its
upper half. The host reaches machines through the bridge and Pods through routes over it; nothing is
translated and the host forwards nothing.

The trap: interface names hold 15 bytes, so they are made from a digest of the cluster's name.
"""

import hashlib
import ipaddress
import json
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIMIT_S = 20
BLOCK_PREFIX = 16


class NetworkError(Exception):
    """The host refuses an interface or a route, or uses the addresses already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A machine's cable: ``veth`` is its end on the host, plugged into ``bridge``."""

    bridge: str
    veth: str
    address: IPv4Address
    prefix: int
    gateway: IPv4Address
    routes: tuple[tuple[IPv4Network, IPv4Address], ...]


@dataclass(frozen=True, slots=True)
class ClusterNetwork:
    """The addresses of one cluster."""

    cluster: str
    block: IPv4Network

    @classmethod
    def derived(cls, cluster: str) -> "ClusterNetwork":
        """Return the /16 that belongs to a cluster's name: 10.64 to 10.223."""
        octet = 64 + int(_digest(cluster)[:8], 16) % 160
        return cls(cluster, IPv4Network(f"10.{octet}.0.0/16"))

    @property
    def bridge(self) -> str:
        """The bridge's name."""
        return f"ps-{_digest(self.cluster)[:8]}"

    @property
    def gateway(self) -> IPv4Address:
        """The host's address on the bridge."""
        return self.block[1]

    @property
    def control(self) -> IPv4Address:
        """The control plane's address."""
        return self.block[2]

    @property
    def services(self) -> IPv4Network:
        """The range of cluster IPs (nothing serves them: there is no kube-proxy)."""
        return list(self.block.subnets(prefixlen_diff=1))[1]

    def node(self, number: int) -> IPv4Address:
        """Return the address of node ``number``, counted from 1."""
        return self.block[10 + number]

    def pods(self, number: int) -> IPv4Network:
        """Return the Pods' subnet of node ``number``, counted from 1."""
        return list(self.block.subnets(new_prefix=24))[number]

    def link(self, machine: str, address: IPv4Address, *, nodes: int) -> Link:
        """Return the cable of a machine in a cluster of ``nodes`` nodes."""
        others = [n for n in range(1, nodes + 1) if self.node(n) != address]
        return Link(
            bridge=self.bridge,
            veth=f"ps-{_digest(f'{self.cluster}/{machine}')[:10]}",
            address=address,
            prefix=24,
            gateway=self.gateway,
            routes=tuple((self.pods(n), self.node(n)) for n in others),
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def parse_block(text: str) -> IPv4Network:
    """Return a cluster's block from its text.

    Raises:
        NetworkError: it is no /16 of private addresses.
    """
    try:
        block = IPv4Network(text)
    except ValueError as error:
        raise NetworkError(f"{error}; write it like 10.90.0.0/16") from error
    if block.prefixlen != BLOCK_PREFIX or not block.is_private:
        raise NetworkError(f"{text} is no private block of /16; write it like 10.90.0.0/16")
    return block


def _mac(address: IPv4Address) -> str:
    """Return a hardware address that a machine keeps over its lives.

    With another one, its peers would send to the old one until their tables forget it, and their
    open connections would take a minute to fail.
    """
    return ":".join(f"{byte:02x}" for byte in b"\x02\x70" + address.packed)


def _ip(*arguments: str) -> str:
    done = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, check=False, timeout=_LIMIT_S
    )
    if done.returncode:
        raise NetworkError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def _interfaces() -> set[str]:
    return {row["ifname"] for row in json.loads(_ip("-json", "link", "show"))}


def refuse_if_routed(network: ClusterNetwork) -> None:
    """Check that nobody else on this host uses the cluster's addresses.

    Raises:
        NetworkError: with the route that is in the way.
    """
    for row in json.loads(_ip("-json", "-4", "route", "show", "table", "all") or "[]"):
        destination = row.get("dst", "default")
        if destination == "default" or row.get("dev") == network.bridge:
            continue
        there = ipaddress.ip_network(destination, strict=False)
        if there.prefixlen and there.overlaps(network.block):
            raise NetworkError(
                f"the host already routes {destination} to {row.get('dev', 'somewhere')}, and "
                f"cluster {network.cluster!r} would use {network.block}; choose another block with "
                "--network 10.N.0.0/16, or another --name"
            )


def ensure_bridge(network: ClusterNetwork, *, nodes: int) -> None:
    """Make the bridge and the routes to the Pods, as far as they are missing."""
    bridge = network.bridge
    if bridge not in _interfaces():
        _ip("link", "add", bridge, "type", "bridge")
    _ip("address", "replace", f"{network.gateway}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    for number in range(1, nodes + 1):
        node = str(network.node(number))
        _ip("route", "replace", str(network.pods(number)), "via", node, "dev", bridge)


def join(link: Link, pid: int) -> None:
    """Plug in the machine whose first process is ``pid``; harmless when it is plugged in."""
    if link.veth not in _interfaces():
        peer = ("peer", "name", "eth0", "address", _mac(link.address), "netns", str(pid))
        _ip("link", "add", link.veth, "type", "veth", *peer)
    _ip("link", "set", link.veth, "master", link.bridge, "up")


def remove_link(name: str) -> None:
    """Remove an interface; harmless when it is gone, also when it goes at this moment."""
    if name in _interfaces():
        try:
            _ip("link", "delete", name)
        except NetworkError:
            if name in _interfaces():
                raise
