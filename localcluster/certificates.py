# SPDX-License-Identifier: Apache-2.0
"""The cluster's certificates and kubeconfigs: one authority, one certificate per identity.

The trap: a certificate names addresses, so it is issued anew when the addresses it must hold
change; the authority is kept, or every Pod's service account token and kubeconfig would break.
"""

import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID_FOR = timedelta(days=3650)
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SKEW = timedelta(hours=1)
_SA_KEY_BITS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a certificate is for. ``hosts`` are DNS names and addresses of a server."""

    file: str
    common_name: str
    organization: str = ""
    hosts: tuple[str, ...] = ()


def write_private(path: Path, content: bytes | str) -> None:
    """Replace a file at once, readable by its owner alone."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    temporary.rename(path)


class Authority:
    """The certificates in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._certificate: x509.Certificate
        self._key: ec.EllipticCurvePrivateKey

    @property
    def ca(self) -> Path:
        """The authority's certificate."""
        return self.directory / "ca.crt"

    def certificate(self, file: str) -> Path:
        """Return where an identity's certificate lies."""
        return self.directory / f"{file}.crt"

    def key(self, file: str) -> Path:
        """Return where an identity's private key lies."""
        return self.directory / f"{file}.key"

    def ensure(self, identities: Sequence[Identity]) -> None:
        """Issue what is missing, runs out soon, or does not fit its identity any more."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ensure_authority()
        self._ensure_service_account_key()
        for identity in identities:
            if not self._is_good(identity):
                self._issue(identity)

    def _ensure_authority(self) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(self.ca.read_bytes())
            key = serialization.load_pem_private_key(self.key("ca").read_bytes(), None)
        except (OSError, ValueError):
            pass
        else:
            if isinstance(key, ec.EllipticCurvePrivateKey):
                self._key = key
                return
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "podsnap-local-ca")])
        builder = self._builder(name, self._key.public_key(), issuer=name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_key_usage(ca=True), True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        write_private(self.key("ca"), _pem(self._key))
        write_private(self.ca, self._certificate.public_bytes(serialization.Encoding.PEM))

    def _ensure_service_account_key(self) -> None:
        if self.key("sa").exists() and (self.directory / "sa.pub").exists():
            return
        key = rsa.generate_private_key(public_exponent=65537, key_size=_SA_KEY_BITS)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_private(self.key("sa"), _pem(key))
        write_private(self.directory / "sa.pub", public)

    def _is_good(self, identity: Identity) -> bool:
        try:
            there = x509.load_pem_x509_certificate(self.certificate(identity.file).read_bytes())
            there.verify_directly_issued_by(self._certificate)
            names = there.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
            return False
        return (
            self.key(identity.file).exists()
            and there.subject == _subject(identity)
            and list(names) == _alternative_names(identity)
            and there.not_valid_after_utc > datetime.now(UTC) + _RENEW_BEFORE
        )

    def _issue(self, identity: Identity) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(
            _subject(identity), key.public_key(), issuer=self._certificate.subject
        )
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.hosts:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names = x509.SubjectAlternativeName(_alternative_names(identity))
        builder = builder.add_extension(names, False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        builder = builder.add_extension(_key_usage(ca=False), True)
        certificate = builder.sign(self._key, hashes.SHA256())
        # The key first: a certificate without its key would count as there.
        self.certificate(identity.file).unlink(missing_ok=True)
        write_private(self.key(identity.file), _pem(key))
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        write_private(self.certificate(identity.file), pem)

    @staticmethod
    def _builder(
        subject: x509.Name, key: ec.EllipticCurvePublicKey, *, issuer: x509.Name
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _VALID_FOR)
        )

    def kubeconfig(self, file: str, *, server: str) -> Path:
        """Write the kubeconfig of a certificate's identity; everything it needs is inside."""
        user = {
            "client-certificate-data": _base64(self.certificate(file)),
            "client-key-data": _base64(self.key(file)),
        }
        return self._write_kubeconfig(file, server=server, user=user)

    def token_kubeconfig(self, file: str, *, server: str, token: str) -> Path:
        """Write the kubeconfig of a service account; the token lies beside it in its own file."""
        token_file = self.directory / f"{file}.token"
        write_private(token_file, token)
        return self._write_kubeconfig(file, server=server, user={"tokenFile": str(token_file)})

    def _write_kubeconfig(self, file: str, *, server: str, user: dict[str, str]) -> Path:
        cluster = {"server": server, "certificate-authority-data": _base64(self.ca)}
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "podsnap-local", "cluster": cluster}],
            "users": [{"name": file, "user": user}],
            "contexts": [
                {"name": "podsnap-local", "context": {"cluster": "podsnap-local", "user": file}}
            ],
            "current-context": "podsnap-local",
        }
        path = self.directory / f"{file}.kubeconfig"
        text = json.dumps(tree, indent=1)  # JSON is YAML
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_private(path, text)
        return path


def _base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode("ascii")


def _subject(identity: Identity) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)]
    if identity.organization:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.organization))
    return x509.Name(parts)


def _alternative_names(identity: Identity) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in identity.hosts or (identity.file,):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
