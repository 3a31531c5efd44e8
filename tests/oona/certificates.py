"""A certificate authority for one test, and a server certificate signed by it."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["write_certificates"]


def write_certificates(folder: Path) -> dict[str, Path]:
    """Write `ca.crt`, and `server.crt` with `server.key`, which is valid for 127.0.0.1 only."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        is_ca = key is signer
        named, by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, "test-ca"))
        builder = (
            x509.CertificateBuilder()
            .issuer_name(by)
            .subject_name(named)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )
        if is_ca:
            usage = dict.fromkeys(
                ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "encipher_only", "decipher_only"), False,
            ) | {"key_cert_sign": True, "crl_sign": True}  # fmt: skip
            builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        else:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    files = {name: folder / name for name in ("ca.crt", "server.crt", "server.key")}
    pem = serialization.Encoding.PEM
    files["ca.crt"].write_bytes(certificate("test-ca", authority, authority).public_bytes(pem))
    files["server.crt"].write_bytes(certificate("server", key, authority).public_bytes(pem))
    files["server.key"].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
