"""A PostgreSQL server for tests: one a test run, on a Unix socket in a temporary folder, as a user that is
not root. Nothing of it survives the run."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

HOME = Path("/usr/lib/postgresql")
USER = "streamsrv"
QUICK = {
    "fsync": "off",  # processes are killed in tests, machines are not
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "autovacuum_naptime": "5s",
    "log_min_messages": "fatal",
}


def programs():
    """The folder of the newest installed version, from 14 on."""
    versions = [each for each in HOME.iterdir() if each.name.isdigit() and int(each.name) >= 14]
    return max(versions, key=lambda each: int(each.name)) / "bin"


def said(folder, statement, database="postgres", port="5432"):
    """What psql prints."""
    client = [str(programs() / "psql"), "-h", str(folder), "-p", port, "-U", USER, "-d", database]
    done = subprocess.run([*client, "-Atqc", statement], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def url_of(folder, schema, port="5432"):
    """Of the server in this folder, and a schema that is made."""
    said(folder, f"CREATE SCHEMA IF NOT EXISTS {schema}", port=port)
    return f"postgresql://{USER}@/postgres?host={folder}&options=-csearch_path%3D{schema}"


class DatabaseServer:
    def __init__(self, primary=None, **settings):
        """With a `primary` the server is its standby."""
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="streamsrv-db-", dir=place))
        self._identity = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._data = self.folder / "data"
        self._settings = QUICK | settings
        self._port = str(settings.get("port", 5432))
        if primary is None:
            how = ("-U", USER, "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
            self._run("initdb", "-D", self._data, *how)
        else:
            whose = ("-h", primary.folder, "-U", USER)
            self._run("pg_basebackup", "-D", self._data, *whose, "-R", "-N", "--checkpoint=fast")
        self.start()

    def _run(self, program, *arguments):
        subprocess.run(
            [str(programs() / program), *map(str, arguments)],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **self._identity,
        )

    def start(self):
        options = " ".join(f"-c {name}='{value}'" for name, value in self._settings.items())
        options += f" -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", self.folder / "log", "-w", "start")

    def stop(self, mode="fast"):
        """`immediate` is what a crash is."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def promote(self):
        """A standby becomes a primary."""
        self._run("pg_ctl", "-D", self._data, "-w", "promote")

    def sql(self, statement, database="postgres"):
        """What psql prints."""
        return said(self.folder, statement, database, self._port)

    def url(self, schema="public"):
        """Of a schema of its own, which is made."""
        return url_of(self.folder, schema, self._port)

    def end(self):
        """Also if it was stopped."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)
