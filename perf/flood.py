"""A client in a process of its own, for many answers or for answers that are too large for wrk.

Strategy: one thread and epoll, so that it shares no interpreter with the process that measures. Each
connection asks again as soon as it was answered, or after a gap, or at a steady pace as a viewer does. At a
steady pace the time of a late answer counts from when its request was due.

usage: python -m perf.flood < PLAN.json    (prints JSON: seconds, bytes, begin and seconds of each answer)
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

from perf.clients import Answered, Client
from perf.servers import ROOT, Server

PRIORITY = -10


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` is 0 for a client that runs until its standard input ends. `pause` is the time from one
    request of a connection to the next, `gap` the time from an answer to the next request, in seconds.
    `first`: it runs before the other processes of this machine, if that is allowed."""

    server: Server
    paths: Sequence[str]
    headers: Mapping[str, str]
    clients: int = 1
    seconds: float = 0.0
    pause: float = 0.0
    gap: float = 0.0
    first: bool = False

    def write(self) -> str:
        bare: dict[str, object] = {"folder": None, "studies": []}
        return json.dumps({**asdict(self), "server": {**asdict(self.server), **bare}})

    @classmethod
    def read(cls, text: str) -> Plan:
        content = json.loads(text)
        return cls(**{**content, "server": Server(**content["server"])})


class Answer(NamedTuple):
    began: float  # by time.perf_counter, which is one clock for all processes
    seconds: float


class Asker(Client):
    """One connection that does not block."""

    def __init__(self, plan: Plan, first: int) -> None:
        super().__init__(plan.server)
        self.plan, self.turn, self.due = plan, first, 0.0

    def connect(self) -> None:
        super().connect()
        self.socket.setblocking(False)

    def ask_next(self, due: float) -> None:
        self.due = due
        self.ask("GET", self.plan.paths[self.turn % len(self.plan.paths)], self.plan.headers)
        self.turn += self.plan.clients


def run(plan: Plan) -> tuple[float, int, list[Answer]]:
    """Seconds, bytes of payload, and the answers. Raises RuntimeError if a status is not 200, and as
    `Client.receive`."""
    askers = [Asker(plan, number) for number in range(plan.clients)]
    try:
        return _run(plan, askers)
    finally:
        for asker in askers:
            asker.socket.close()


def _run(plan: Plan, askers: Sequence[Asker]) -> tuple[float, int, list[Answer]]:
    answers: list[Answer] = []
    total, ended = 0, False
    with selectors.DefaultSelector() as selector:
        for asker in askers:
            selector.register(asker.socket, selectors.EVENT_READ, asker)
        if not plan.seconds:
            selector.register(sys.stdin, selectors.EVENT_READ, None)
        began = now = time.perf_counter()
        # At a steady pace the first requests of the connections are spread over one pause.
        waiting = {asker: began + plan.pause * n / plan.clients for n, asker in enumerate(askers)}
        # An end that comes before the first answer waits for it.
        while not (ended and answers) and (not plan.seconds or now < began + plan.seconds):
            for asker in [asker for asker, due in waiting.items() if due <= now]:
                due = waiting.pop(asker)
                asker.ask_next(due if plan.pause else now)
            for key, _ in selector.select(max(0.0, min(waiting.values(), default=now + 0.1) - now)):
                asker = key.data
                if asker is None:
                    selector.unregister(sys.stdin)
                    ended = True
                elif asker.receive():
                    now = time.perf_counter()
                    if asker.status != 200:
                        raise RuntimeError(f"a request was answered with {asker.status}")
                    answers.append(Answer(asker.due, now - asker.due))
                    total += asker.length
                    if asker.ending:
                        # The closed socket has left the epoll, but not the map of the selector.
                        selector.unregister(key.fileobj)
                        asker.connect()
                        selector.register(asker.socket, selectors.EVENT_READ, asker)
                    if plan.pause or plan.gap:
                        waiting[asker] = asker.due + plan.pause if plan.pause else now + plan.gap
                    else:
                        asker.ask_next(now)
            now = time.perf_counter()
    return now - began, total, answers


class Seen:
    """The result of a flood, once it has ended."""

    answers: Sequence[Answer] = ()
    answered: Answered


@contextmanager
def started(plan: Plan) -> Iterator[Seen]:
    """Asks until the block ends, and for the seconds of the plan at least."""
    command = [sys.executable, "-m", "perf.flood"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    seen = Seen()
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(plan.write() + "\n")
        process.stdin.flush()
        try:
            yield seen
            printed, _ = process.communicate()
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError("the client of perf.flood failed")
    found = json.loads(printed)
    seen.answers = [Answer(*each) for each in found["answers"]]
    milliseconds = [one.seconds * 1e3 for one in seen.answers]
    seen.answered = Answered.of(milliseconds, found["seconds"], found["bytes"])


def flood(
    server: Server,
    paths: Sequence[str],
    accept: str,
    clients: int,
    seconds: float,
    encoding: str = "identity",
) -> Answered:
    """Sends GETs over the paths in turn, on each connection as fast as it is answered."""
    headers = {"Accept": accept, "Accept-Encoding": encoding}
    with started(Plan(server, paths, headers, clients, seconds)) as seen:
        pass
    return seen.answered


def viewing(server: Server, paths: Sequence[str], accept: str, clients: int, pause: float) -> Plan:
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    return Plan(server, paths, headers, clients, pause=pause)


def pinging(server: Server, path: str, accept: str) -> Plan:
    """One client that asks 5 ms after each answer."""
    return Plan(server, [path], {"Accept": accept, "Accept-Encoding": "identity"}, gap=0.005, first=True)


def main() -> int:
    plan = Plan.read(sys.stdin.readline())
    if plan.first:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    seconds, total, answers = run(plan)
    rounded = [[round(one.began, 6), round(one.seconds, 7)] for one in answers]
    print(json.dumps({"seconds": seconds, "bytes": total, "answers": rounded}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
