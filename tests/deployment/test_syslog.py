"""The audit trail of a real server in a real rsyslog, over TLS, while rsyslog comes and goes."""

import re
import signal
import subprocess
import time

import pytest
from kill_world import waited
from live_server import free_port, start_server
from lxml import etree
from small_client import Client
from tls_world import made

from streamsrv.audit.reading import entries_of

CONFIGURATION = """
global(workDirectory="{folder}" maxMessageSize="64k" defaultNetstreamDriverCAFile="{certificate}"
       defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" StreamDriver.Name="{driver}" StreamDriver.Mode="1" StreamDriver.AuthMode="anon")
input(type="imtcp" port="{port}" address="127.0.0.1")
template(name="whole" type="string" string="%rawmsg%\\n")
action(type="omfile" file="{folder}/received" template="whole" asyncWriting="off")
"""
SEQUENCE = re.compile(
    rb'^<\d+>1 \S+ \S+ streamsrv - DICOM\+RFC3881 \[meta sequenceId="(\d+)"\] \xef\xbb\xbf(.*)'
)


class Rsyslog:
    def __init__(self, folder, driver):
        pair = made(folder, "receiver", extensions=("subjectAltName=DNS:localhost",))
        self.certificate, self.port, self._folder = pair.certificate, free_port(), folder
        names = {"folder": folder, "certificate": pair.certificate, "key": pair.key}
        text = CONFIGURATION.format(driver=driver, port=self.port, **names)
        (folder / "rsyslog.conf").write_text(text)
        self._process = None

    def start(self):
        self._process = subprocess.Popen(
            ["rsyslogd", "-n", "-f", self._folder / "rsyslog.conf", "-i", self._folder / "pid"],
            stderr=subprocess.DEVNULL,
        )

    def end(self, number):
        self._process.send_signal(number)
        self._process.wait(20)

    def received(self):
        """The numbers of the entries, and their messages."""
        path = self._folder / "received"
        found = [SEQUENCE.match(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        return [(int(each[1]), each[2]) for each in found if each]


@pytest.mark.parametrize("driver", ["gtls", "ossl"])
def test_no_entry_is_lost_while_the_receiver_is_away(tmp_path, driver):
    (tmp_path / "rsyslog").mkdir()
    receiver = Rsyslog(tmp_path / "rsyslog", driver)
    flags = ("--audit", "on", "--audit-syslog", f"localhost:{receiver.port}")
    server = start_server(
        tmp_path / "server", *flags, "--audit-syslog-ca", str(receiver.certificate), workers=2
    )
    client, number = Client(server.origin), 0
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        receiver.start()
        until = time.monotonic() + 0.7
        while time.monotonic() < until:
            number += 1
            client.ask("GET", f"/studies?StudyDescription={number}")
        waited(receiver.received, "rsyslog receives")
        receiver.end(end)
        for _ in range(20):  # while it is away
            number += 1
            client.ask("GET", f"/studies?StudyDescription={number}")
    client.close()
    receiver.start()
    expected = set(range(1, number + 2))  # the start of the server, and a query for each number
    waited(lambda: len(list(entries_of(server.data / "audit"))) == len(expected), "all are written")
    waited(lambda: {each for each, _ in receiver.received()} == expected, "all are received")
    assert server.end() == 0
    receiver.end(signal.SIGTERM)
    found = receiver.received()
    assert {etree.fromstring(text).tag for _, text in found} == {"AuditMessage"}
