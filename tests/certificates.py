"""Certificates of an authority for tests, made by openssl."""

import subprocess
from typing import NamedTuple

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


class Issued(NamedTuple):
    certificate: str
    key: str


class Authority:
    """Makes files in a folder. `certificate` is the one to trust."""

    def __init__(self, folder):
        self.folder = folder
        made = self._request(
            "authority", "-x509", "-days", "2", "-addext", "basicConstraints=critical,CA:TRUE"
        )
        self.certificate, self.key = made

    def issue(self, name, alternative="IP:127.0.0.1", *more):
        """A certificate and its key for the subject `name`."""
        authority = ("-CA", self.certificate, "-CAkey", self.key)
        alternatives = ("-addext", f"subjectAltName={alternative}")
        return self._request(name, "-x509", *authority, "-days", "2", *alternatives, *more)

    def _request(self, name, *more):
        made = Issued(str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key"))
        command = ["openssl", "req", *CURVE, "-noenc", "-subj", f"/CN={name}"]
        command += ["-keyout", made.key, "-out", made.certificate, *more]
        subprocess.run(command, check=True, capture_output=True)
        return made
