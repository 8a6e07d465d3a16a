"""Clients that read the changes of a server, and whether they read each one once and in order."""

import http.client
import json
import threading
from contextlib import closing, suppress
from urllib.parse import urlsplit

from small_client import LOST, Client, NotSent


class EventClient:
    """One stream of events. `headers` may have Last-Event-ID."""

    def __init__(self, url, **headers):
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.last_id = ""
        try:
            self.connection.request("GET", f"{parts.path}?{parts.query}", headers=named)
            self.answer = self.connection.getresponse()
        except OSError:
            self.connection.close()
            raise

    def events(self):
        """Yields (event, data) until the stream ends."""
        name, data = "message", ""
        for line in self.answer:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "id":
                self.last_id = value
            elif field == "event":
                name = value
            elif field == "data":
                data = value
            elif not field and not value and data:
                yield name, json.loads(data)
                name, data = "message", ""

    def close(self):
        self.answer.close()
        self.connection.close()


class Poll:
    """Reads the feed by pages. Sequences have no gaps, so the number of changes is that of the last one."""

    def __init__(self, server):
        self.changes = []
        self._client = Client(server.origin)
        self.close = self._client.close

    def read(self):
        """Whether something was new."""
        offset = self.changes[-1]["sequence"] if self.changes else 0
        path = f"/changefeed?offset={offset}&limit=37&includeMetadata=false"
        with suppress(*LOST, NotSent):
            reply = self._client.ask("GET", path)
            self.changes += reply.json() if reply.status == 200 else []
            return reply.status != 200 or bool(reply.json())
        return True


class Follow(threading.Thread):
    """Connects again behind its last event, as a browser does."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server = server
        self.events = []
        self.last = "0"
        self.ending = threading.Event()

    def run(self):
        while not self.ending.wait(0.05):
            url = f"{self.server.url}/events?duration=2"
            with suppress(*LOST), closing(EventClient(url, Last_Event_ID=self.last)) as client:
                for event in client.events():
                    self.events.append(event)
                    self.last = client.last_id

    @property
    def changes(self):
        return [data for name, data in self.events if name == "message"]


def told_once(changes):
    """The changes without repetitions; each repetition has the same members but for its state."""
    known = {}
    for each in changes:
        same = {name: value for name, value in each.items() if name != "state"}
        assert known.setdefault(each["sequence"], same) == same
    assert list(known) == list(range(1, len(known) + 1))  # in order, and none is missing
    return [(each["action"], each["sopInstanceUid"]) for each in known.values()]
