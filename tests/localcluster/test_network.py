# SPDX-License-Identifier: Apache-2.0
"""A cluster's addresses and its bridge."""

import os
from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcluster import network
from localcluster.network import ClusterNetwork, NetworkError

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)


@given(names, st.integers(min_value=1, max_value=20))
def test_no_two_uses_of_the_block_overlap(name: str, nodes: int) -> None:
    """Machines, each node's Pods and services have addresses of their own, all in one block."""
    net = ClusterNetwork.derived(name)
    machines = IPv4Network(f"{net.block[0]}/24")
    ranges = [machines, net.services, *(net.pods(n) for n in range(1, nodes + 1))]
    assert all(r.subnet_of(net.block) for r in ranges)
    assert not any(a.overlaps(b) for i, a in enumerate(ranges) for b in ranges[:i])
    assert all(net.node(n) in machines for n in range(1, nodes + 1))


@given(names)
def test_interface_names_fit_the_kernels_limit(name: str) -> None:
    """The kernel takes at most 15 bytes."""
    net = ClusterNetwork.derived(name)
    link = net.link("control-plane", net.control, nodes=2)
    assert len(link.bridge) <= 15
    assert len(link.veth) <= 15
    assert link.bridge != link.veth


def test_a_node_has_routes_to_the_other_nodes_pods_alone() -> None:
    """Its own Pods are behind its own bridge."""
    net = ClusterNetwork.derived("routes")
    link = net.link("node1", net.node(1), nodes=2)
    assert link.routes == ((net.pods(2), net.node(2)),)
    control = net.link("control-plane", net.control, nodes=2)
    assert [subnet for subnet, _ in control.routes] == [net.pods(1), net.pods(2)]


def test_addresses_that_the_host_routes_elsewhere_are_refused(able_host: None) -> None:
    """Another cluster's bridge with the same block is in the way, the own one is not."""
    mine = ClusterNetwork.derived(f"mine-{os.getpid()}")
    other = ClusterNetwork(f"other-{os.getpid()}", mine.block)
    network.ensure_bridge(mine, nodes=1)
    try:
        network.refuse_if_routed(mine)
        with pytest.raises(NetworkError, match=f"already routes .* to {mine.bridge}.*--network"):
            network.refuse_if_routed(other)
    finally:
        network.remove_link(mine.bridge)
    network.refuse_if_routed(other)


@pytest.mark.parametrize("text", ["nonsense", "10.90.1.0/24", "10.90.1.0/16", "8.8.0.0/16"])
def test_a_block_that_will_not_do_is_refused_with_an_example(text: str) -> None:
    """Only a private /16 has room for machines, Pods and services."""
    with pytest.raises(NetworkError, match=r"write it like 10\.90\.0\.0/16"):
        network.parse_block(text)


def test_making_the_bridge_twice_and_removing_it_twice_is_harmless(able_host: None) -> None:
    """Each call converges from whatever is there."""
    net = ClusterNetwork.derived(f"twice-{os.getpid()}")
    for _ in range(2):
        network.ensure_bridge(net, nodes=1)
    for _ in range(2):
        network.remove_link(net.bridge)
    network.refuse_if_routed(net)
