"""A database over TCP, with TLS and passwords: what a server says that must not start."""

import os
import pwd
import re
import shutil

import pytest
from certificates import Authority
from database_server import DatabaseServer
from live_server import free_port, refused_start, start_server

from streamsrv.errors import StoreError
from streamsrv.store.postgresql import open_index
from streamsrv.store.postgresql.connections import Connections

HOSTS = """local all all trust
hostssl all streamsrv 127.0.0.1/32 scram-sha-256
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def address(authority):
    """Host and port of a database that lets in its user with a password, over TLS alone."""
    port = free_port()
    server = DatabaseServer(listen_addresses="127.0.0.1", port=port)
    issued = authority.issue("database", "DNS:localhost")
    for name, setting in (("certificate", "ssl_cert_file"), ("key", "ssl_key_file")):
        target = server.folder / name
        shutil.copy(getattr(issued, name), target)
        target.chmod(0o600)
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(target, user.pw_uid, user.pw_gid)
        server.sql(f"ALTER SYSTEM SET {setting} = '{target}'")
    server.sql("ALTER SYSTEM SET ssl = on")
    server.sql("ALTER USER streamsrv PASSWORD 'right-word'")
    (server.folder / "data/pg_hba.conf").write_text(HOSTS)
    server.sql("SELECT pg_reload_conf()")
    yield f"localhost:{port}"
    server.end()


@pytest.fixture
def url(address, authority):
    return (
        f"postgresql://streamsrv@{address}/postgres?sslmode=verify-full&sslrootcert={authority.certificate}"
    )


def test_a_server_over_tls_with_a_password(url, tmp_path):
    running = start_server(tmp_path / "served", "--index", url, variables={"PGPASSWORD": "right-word"})
    assert running.is_ready()
    assert running.end() == 0


def test_the_server_soon_ends_the_sessions_of_a_machine_that_is_lost(url, monkeypatch):
    """It asks the machine for signs of life; by default it does so after two hours."""
    monkeypatch.setenv("PGPASSWORD", "right-word")
    with Connections(url).connect() as connection:
        names = ("idle", "interval", "count")
        found = [connection.execute(f"SHOW tcp_keepalives_{name}").fetchone() for name in names]
    assert found == [("5",), ("5",), ("3",)]


REFUSED = "refuses the user or its password: "
UNTRUSTED = "no trusted TLS connection to the database: "
WRONG = [
    ("", "", "wrong-word", f"{REFUSED}.*password authentication failed"),
    ("", "", "", f"{REFUSED}.*no password supplied"),
    ("verify-full", "disable", "right-word", f"{REFUSED}.*no pg_hba.conf entry"),
    ("streamsrv@", "stranger@", "right-word", f"{REFUSED}.*no pg_hba.conf entry"),
    ("/postgres?", "/nothing?", "right-word", 'cannot be opened: .*"nothing" does not exist'),
    ("localhost", "127.0.0.1", "right-word", f"{UNTRUSTED}.*does not match host name"),
    ("authority.pem", "missing.pem", "right-word", f"{UNTRUSTED}.*missing.pem.* does not exist"),
    ("authority.pem", "database.pem", "right-word", f"{UNTRUSTED}.*certificate verify failed"),
]


@pytest.mark.parametrize(("part", "instead", "password", "sentence"), WRONG)
def test_the_sentence_names_the_setting(url, part, instead, password, sentence, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", password)
    with pytest.raises(StoreError, match=f"the setting `index`: .*{sentence}") as raised:
        open_index(url.replace(part, instead))
    assert "-word" not in str(raised.value)


@pytest.mark.parametrize(("part", "instead", "password", "sentence"), [WRONG[0], WRONG[-1]])
def test_a_server_that_must_not_start_says_so(url, tmp_path, part, instead, password, sentence):
    code, said = refused_start(tmp_path, "--index", url.replace(part, instead), PGPASSWORD=password)
    assert code == 1
    assert re.search(f"the setting `index`: .*{sentence}", said), said
