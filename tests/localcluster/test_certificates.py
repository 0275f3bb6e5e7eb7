# SPDX-License-Identifier: Apache-2.0
"""Certificates are issued once, and anew when what they name changes."""

import json
from pathlib import Path

import pytest
from cryptography import x509

from localcluster.certificates import Authority, Identity

SERVER = Identity(file="server", common_name="kube-apiserver", hosts=("10.90.0.2", "kubernetes"))
ANY_TEXT = "any text"
CLIENT = Identity(file="admin", common_name="admin", organization="system:masters")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority with a server and a client."""
    made = Authority(tmp_path / "pki")
    made.ensure([SERVER, CLIENT])
    return made


def contents(authority: Authority) -> dict[str, bytes]:
    """Return every file's content."""
    return {path.name: path.read_bytes() for path in authority.directory.iterdir()}


def test_a_second_call_changes_no_file(authority: Authority) -> None:
    """`up` on a running cluster must not exchange what its components hold."""
    before = contents(authority)
    Authority(authority.directory).ensure([SERVER, CLIENT])
    assert contents(authority) == before


def test_new_addresses_renew_the_server_alone(authority: Authority) -> None:
    """The authority and the other identities are kept."""
    before = contents(authority)
    moved = Identity(file="server", common_name="kube-apiserver", hosts=("10.91.0.2",))
    authority.ensure([moved, CLIENT])
    after = contents(authority)
    assert {name for name in after if after[name] != before[name]} == {"server.crt", "server.key"}


def test_a_lost_key_is_replaced_with_its_certificate(authority: Authority) -> None:
    """A certificate without its key is of no use to anybody."""
    authority.key("admin").unlink()
    before = authority.certificate("admin").read_bytes()
    authority.ensure([SERVER, CLIENT])
    assert authority.key("admin").exists()
    assert authority.certificate("admin").read_bytes() != before


def test_certificates_are_signed_by_the_authority(authority: Authority) -> None:
    """Every identity chains up to ca.crt."""
    ca = x509.load_pem_x509_certificate(authority.ca.read_bytes())
    for name in ("server", "admin"):
        leaf = x509.load_pem_x509_certificate(authority.certificate(name).read_bytes())
        leaf.verify_directly_issued_by(ca)


def test_every_file_is_for_its_owner_alone(authority: Authority) -> None:
    """Keys, kubeconfigs and tokens are secrets."""
    authority.kubeconfig("admin", server="https://10.90.0.2:6443")
    authority.token_kubeconfig("agent", server="https://10.90.0.2:6443", token=ANY_TEXT)
    for path in authority.directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_a_service_accounts_kubeconfig_names_the_token_file(authority: Authority) -> None:
    """A renewed token is seen without a restart, so the token must not be copied in."""
    path = authority.token_kubeconfig("agent", server="https://x", token=ANY_TEXT)
    user = json.loads(path.read_text())["users"][0]["user"]
    assert user == {"tokenFile": str(authority.directory / "agent.token")}
