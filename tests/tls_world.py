"""Certificates for tests, made by openssl, and clients that use them."""

import http.client
import ssl
import subprocess
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

KEYS = {"ec": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["rsa:2048"]}
NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
AUTHORITY = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")


def openssl(*words):
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Pair:
    certificate: Path
    key: Path

    @property
    def flags(self):
        return ["--tls-certificate", str(self.certificate), "--tls-key", str(self.key)]

    def context(self, client=None):
        """Of a client that trusts this certificate alone; it shows the certificate `client`."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return context


def made(folder, name, *, subject="/CN=localhost", extensions=(NAMES,), signer=None, key="ec", days=90):
    """A new pair. `signer` is the pair of the authority; without one it signs itself."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    words = ["req", "-x509", "-newkey", *KEYS[key], "-nodes", "-keyout", pair.key]
    words += ["-out", pair.certificate, "-days", days, "-subj", subject]
    if signer is not None:
        words += ["-CA", signer.certificate, "-CAkey", signer.key]
        extensions = (*extensions, "basicConstraints=critical,CA:FALSE")
    for each in extensions:
        words += ["-addext", each]
    openssl(*words)
    pair.key.chmod(0o600)
    return pair


def ended(folder):
    """A pair whose time is over, which openssl does not make."""
    pair, name = made(folder, "ended"), x509.Name.from_rfc4514_string("CN=localhost")
    key = load_pem_private_key(pair.key.read_bytes(), None)
    start = datetime(2020, 1, 1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=9))
    pair.certificate.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return pair


def authority(folder, name="authority"):
    """A pair that signs others."""
    return made(folder, name, subject=f"/CN={name}", extensions=AUTHORITY)


def connection(server, context, timeout=20):
    host, _, port = server.origin.rpartition("//")[2].partition(":")
    return http.client.HTTPSConnection(host, int(port), timeout=timeout, context=context)


def fetched(server, path, *, method="GET", body=None, headers=None, context=None):
    """(status, headers, body) of one request on a connection of its own."""
    line = connection(server, context or server.context)
    try:
        line.request(method, path, body, headers or {})
        answer = line.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        line.close()
