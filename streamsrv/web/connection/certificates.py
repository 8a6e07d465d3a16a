"""Certificate and key of the server, and the authorities of its clients: read, checked, handed to workers.

Strategy: the supervisor reads the files and tries them. A copy of good ones is in memory files that all
workers inherit. So all of them use the same pair, also one that starts while a file on the disk is half
written or wrong. The key is in no log, no setting and no address space for longer than the read.

Rules of this file
- Versions and ciphers are those of Mozilla's intermediate configuration, without finite-field groups. Python
  selects one curve only: P-256, which every client has.
- Nothing is asked on a terminal: an encrypted key is refused.
- Where clients are asked for certificates, no session is resumed by ticket: each connection proves its key.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from streamsrv.errors import StreamsrvError
from streamsrv.settings import Settings

CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
CURVE = "prime256v1"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
LONGEST = 1 << 20  # bytes of a file.
# A certificate that ends in so many seconds is mentioned.
SOON = 14 * 86_400.0
MOST_STEPS = 10  # of a handshake
# Parts of the first lines of PEM (RFC 7468 5, 10 and 11; keys also have older names).
CERTIFICATE, KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"
REASONS = {
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "EE_KEY_TOO_SMALL": "the key of the certificate is too short",
    "CA_MD_TOO_WEAK": "the certificate is signed with a digest that is too weak",
}


class BadCertificate(StreamsrvError):
    """A certificate, a key or an authority cannot be used; `detail` says which and why."""


class ServerCertificate(NamedTuple):
    """Descriptors of the memory files: certificate chain and key; authorities of clients, or empty."""

    pair: int
    authorities: int

    @staticmethod
    def make(settings: Settings) -> ServerCertificate | None:
        """None without a certificate. Raises BadCertificate."""
        if not settings.tls_certificate:
            for name in ("tls_key", "tls_client_ca"):
                if getattr(settings, name):
                    raise BadCertificate(f"{name} has no effect without tls_certificate")
            return None
        made = ServerCertificate(os.memfd_create("pair"), os.memfd_create("authorities"))
        made.renew(settings)
        return made

    def renew(self, settings: Settings) -> None:
        """Reads the files again. Raises BadCertificate, and then nothing changes."""
        pair, authorities = _pair(settings), _authorities(settings)
        trial = ServerCertificate(os.memfd_create("pair"), os.memfd_create("authorities"))
        try:
            trial._fill(pair, authorities)
            trial.context(settings)
        finally:
            for descriptor in trial:
                os.close(descriptor)
        self._fill(pair, authorities)

    def _fill(self, *contents: bytes) -> None:
        for descriptor, content in zip(self, contents, strict=True):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)

    def context(self, settings: Settings) -> ssl.SSLContext:
        """Raises BadCertificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = VERSIONS[settings.tls_min_version]
        context.set_ciphers(CIPHERS)
        context.set_ecdh_curve(CURVE)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_IGNORE_UNEXPECTED_EOF
        context.options &= (
            ~ssl.OP_CIPHER_SERVER_PREFERENCE
        )  # a client without AES in hardware chooses ChaCha20
        place = settings.tls_key or settings.tls_certificate
        try:
            context.load_cert_chain(f"/proc/self/fd/{self.pair}", password=_no_password)
        except ssl.SSLError as error:
            reason = REASONS.get(error.reason or "", f"OpenSSL says {error.reason or error}")
            raise BadCertificate(f"{settings.tls_certificate} with the key of {place}: {reason}") from None
        except (OSError, ValueError) as error:
            raise BadCertificate(f"{place}: {error}") from None
        if settings.tls_client_ca:
            self._ask_clients(context, settings)
        return context

    def remarks(self, settings: Settings) -> Iterator[str]:
        """Yields sentences for the log: why clients refuse the certificate, now or soon."""
        content = os.pread(self.pair, os.fstat(self.pair).st_size, 0)
        try:
            end = _end_of(self.context(settings), content.decode("ascii", "replace"))
        except ssl.SSLError as error:
            yield f"clients refuse the certificate: {getattr(error, 'verify_message', error.reason)}"
            return
        if end - time.time() < SOON:
            day = time.strftime("%Y-%m-%d", time.gmtime(end))
            yield f"the certificate ends on {day}: renew it, then send SIGHUP"

    def _ask_clients(self, context: ssl.SSLContext, settings: Settings) -> None:
        size = os.fstat(self.authorities).st_size
        try:
            context.load_verify_locations(cadata=os.pread(self.authorities, size, 0).decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise BadCertificate(
                f"tls_client_ca: {settings.tls_client_ca} is no certificate in PEM"
            ) from None
        required = settings.tls_client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0


def _end_of(server: ssl.SSLContext, chain: str) -> float:
    """The end of the certificate in seconds of `time.time()`, by a handshake in memory with a client that
    trusts this chain. Raises SSLError if that fails."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=chain)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = server.wrap_bio(there, back, server_side=True), client.wrap_bio(back, there)
    for _ in range(MOST_STEPS):
        try:
            theirs.do_handshake()
            break
        except ssl.SSLWantReadError:
            with contextlib.suppress(ssl.SSLWantReadError):
                ours.do_handshake()
    found = theirs.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(found["notAfter"])))


def _no_password() -> str:
    raise ValueError("the key is encrypted: streamsrv needs one without a password")


def _pair(settings: Settings) -> bytes:
    name = "tls_key" if settings.tls_key else "tls_certificate"
    place = settings.tls_key or settings.tls_certificate
    chain, key = _read("tls_certificate", settings.tls_certificate, CERTIFICATE), _read(name, place, KEY)
    check_mode(name, place)
    return chain if place == settings.tls_certificate else chain + b"\n" + key


def _authorities(settings: Settings) -> bytes:
    return _read("tls_client_ca", settings.tls_client_ca, CERTIFICATE) if settings.tls_client_ca else b""


def _read(name: str, path: str, needed: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise BadCertificate(f"{name}: {path} cannot be read: {error.strerror}") from None
    if len(content) > LONGEST:
        raise BadCertificate(f"{name}: {path} has more than {LONGEST} bytes")
    if needed not in content:
        raise BadCertificate(f"{name}: {path} has no {needed.strip(b'-').decode().lower()} in PEM")
    return content


def check_mode(name: str, path: str) -> None:
    """Raises BadCertificate if users beside the owner and the group can read the key, or others than the
    owner can write it."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise BadCertificate(f"{name}: {path} cannot be read: {error.strerror}") from None
    if mode & 0o027:
        raise BadCertificate(
            f"{name}: {path} holds a key and has mode {mode:04o}, so other users can read or change it: "
            "run `chmod 600` or `chmod 640` on it"
        )
