"""What was measured, as values; and as JSON and table in perf/results/."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

RESULTS = Path(__file__).resolve().parent / "results"
# BBR paces what it sends by timers, on loopback too: what it allows may be less than a server could give.
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one server (or of the disk). `value` is None where `note` says why there is none;
    `rounds` are what it is the median of."""

    measure: str
    subject: str
    value: float | None
    unit: str
    note: str = ""
    rounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure with a limit. `text` is the same in every run, so that runs can be compared."""

    text: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def reached(self) -> float:
        """How much of what is wanted: 1 and more holds."""
        if self.at_least is not None:
            return self.value / self.at_least
        assert self.at_most is not None
        return self.at_most / self.value if self.value > 0 else math.inf

    @property
    def holds(self) -> bool:
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def limit(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


Finding: TypeAlias = Row | Claim
Made = TypeVar("Made", Row, Claim)


def median_row(measure: str, subject: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    spread = f"{min(values):.4g} to {max(values):.4g} in {len(values)} rounds"
    text = f"{spread}; {note}" if note else spread
    rounds = tuple(float(f"{value:.6g}") for value in values)
    return Row(measure, subject, statistics.median(values), unit, text, rounds)


@dataclass(slots=True)
class Report:
    """`rows_of` and `claims_of` name the measure that each came from; `seconds` is what a measure took."""

    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    rows_of: list[str] = field(default_factory=list)
    claims_of: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = True

    def add(self, name: str, findings: Iterable[Finding]) -> None:
        """Shown one by one, because measuring takes its time. `name`: of the measure."""
        began = time.monotonic()
        try:
            for finding in findings:
                self._take(name, finding)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - began, 1)

    def _take(self, name: str, finding: Finding) -> None:
        if isinstance(finding, Row):
            self.rows.append(finding)
            self.rows_of.append(name)
            print(f"  {finding.measure}: {_line(finding)}", flush=True)
        else:
            self.claims.append(finding)
            self.claims_of.append(name)
            print(f"  {_verdict(finding)}", flush=True)

    def broke(self, name: str, fault: Exception) -> None:
        """A measure that could not be finished; the others go on."""
        self.complete = False
        self.add(name, [Row(name, "not finished", None, "", f"{type(fault).__name__}: {fault}")])

    @property
    def holds(self) -> bool:
        return self.complete and all(claim.holds for claim in self.claims)

    def write(self, name: str, arguments: str) -> list[Path]:
        """NAME.json and NAME.txt in perf/results."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        paths = [RESULTS / f"{name}.{ending}" for ending in ("json", "txt")]
        content = {
            "machine": machine(),
            "arguments": arguments,
            "seconds": self.seconds,
            "rows": [{"of": name, **asdict(row)} for name, row in zip(self.rows_of, self.rows, strict=True)],
            "claims": [
                {"of": name, **asdict(claim), "holds": claim.holds}
                for name, claim in zip(self.claims_of, self.claims, strict=True)
            ],
        }
        paths[0].write_text(json.dumps(content, indent=2) + "\n")
        paths[1].write_text("\n".join(self.table()) + "\n")
        return paths

    def table(self) -> Iterator[str]:
        facts = machine()
        yield machine_line(facts)
        for measure in dict.fromkeys(row.measure for row in self.rows):
            yield ""
            yield measure
            yield from (f"  {_line(row)}" for row in self.rows if row.measure == measure)
        yield ""
        yield from (_verdict(claim) for claim in self.claims)


@dataclass(frozen=True, slots=True)
class Results:
    """What a file of results says."""

    machine: Mapping[str, str]
    arguments: str
    rows: Sequence[Row]
    claims: Sequence[Claim]

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises ValueError if the file holds no results."""
        try:
            content = json.loads(path.read_text())
            rows = [_made(Row, each) for each in content["rows"]]
            claims = [_made(Claim, each) for each in content["claims"]]
            return cls(content["machine"], content["arguments"], rows, claims)
        except (KeyError, TypeError) as fault:
            raise ValueError(f"{path} holds no results: {fault!r}") from None


def _made(kind: type[Made], content: Mapping[str, Any]) -> Made:
    known = {each.name for each in fields(kind)}
    made: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return kind(**{name: value for name, value in made.items() if name in known})


def _line(row: Row) -> str:
    return f"{row.subject:<28} {number(row.value):>10} {row.unit:<14} {row.note}".rstrip()


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(claim: Claim) -> str:
    word = "holds" if claim.holds else "FAILS"
    note = f"; {claim.note}" if claim.note else ""
    return f"{word}  {claim.text}: {claim.value:.3g} {claim.unit} (wanted {claim.limit}{note})"


def machine_line(facts: Mapping[str, str]) -> str:
    """Of the facts in a result file; those written before there was one of them lack it."""
    words = [facts["date"], facts["processor"], f"{facts['cores']} cores", facts.get("memory", "")]
    words += [facts["system"], facts.get("congestion control", "")]
    if facts["commit"]:
        words.append(f"commit {facts['commit']}")
    return ", ".join(word for word in words if word)


def machine() -> dict[str, str]:
    processor = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "congestion control": CONGESTION_CONTROL.read_text().strip(),
        "python": platform.python_version(),
        "tornado": version("tornado"),
        "lmdb": version("lmdb"),
        "commit": _commit(),
    }


def _commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True
    )
    return asked.stdout.strip()
