"""Figures as values, and a run of them as one JSON file in perf/results/; text and comparison are made of it.

A file has a section for each group of measures: the machine and the date, and the rows. A later run with the
same name replaces the sections that it measures.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
# BBR paces by timers, on loopback too: it can bound a rate before a server does.
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
OURS, ORTHANC, NGINX, COPY = "streamsrv", "Orthanc", "nginx", "cp + fsync"
LIBRARY = "library called directly"
OBSTORE = "obstore called directly"
# nginx with a file that is longer than ours: a row of its own, which no claim takes.
WHOLE = "nginx, a file as long as the whole answer"
USUAL = "streamsrv, no fast path"
KEYED = "streamsrv, with a key"
LEAST_RATE = "rates in relation to those without: the least"
PEERS = (ORTHANC, NGINX, COPY, LIBRARY, OBSTORE, "append, sync, commit")
# A figure moved if its median did by LEAST, or by LEAST_ALONE if it had one round only.
LEAST, LEAST_ALONE = 0.05, 0.25


class Row(NamedTuple):
    """One figure of one subject: a server, the disk or a library. `value` is None if `note` gives the reason
    why there is none. `value` is the median of `rounds`. The table of measures gives the unit."""

    measure: str
    subject: str
    value: float | None
    note: str = ""
    rounds: tuple[float, ...] = ()
    unit: str = ""

    @property
    def is_ours(self) -> bool:
        return not self.subject.startswith(PEERS)

    @property
    def is_cost(self) -> bool:
        """Less is better; of all other units, which are rates, more is."""
        return self.unit.split(" ")[0] in ("ms", "us", "MB", "s/GB", "bytes", "calls")

    @property
    def line(self) -> str:
        return f"{self.subject:<28} {number(self.value):>10} {self.unit:<14} {self.note}".rstrip()


def median_row(measure: str, subject: str, values: Sequence[float], note: str = "") -> Row:
    spread = f"{min(values):.4g} to {max(values):.4g} in {len(values)} rounds"
    text = f"{spread}; {note}" if note else spread
    rounds = tuple(float(f"{value:.6g}") for value in values)
    return Row(measure, subject, statistics.median(values), text, rounds)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one group of measures. `facts` are those of `machine`, and the command line."""

    facts: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def machine(self) -> str:
        commit = self.facts["commit"] and f"commit {self.facts['commit']}"
        return f"{self.facts['date']}, {machine_line(self.facts, commit)}"


@dataclass(slots=True)
class Results:
    sections: dict[str, Section] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises ValueError if the file holds no results."""
        try:
            content = json.loads(path.read_text())
            return cls(
                {
                    name: Section(each["facts"], [_row(one) for one in each["rows"]])
                    for name, each in content.items()
                }
            )
        except (KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"{path} holds no results: {fault!r}") from None

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = []
        for name, section in self.sections.items():
            rows = ",\n".join(f"  {json.dumps(row._asdict())}" for row in section.rows)
            texts.append(f' {json.dumps(name)}: {{"facts": {json.dumps(section.facts)}, "rows": [\n{rows}]}}')
        path.write_text("{\n" + ",\n".join(texts) + "\n}\n")

    @property
    def rows(self) -> list[Row]:
        return [row for section in self.sections.values() for row in section.rows]

    def text(self) -> Iterator[str]:
        for name, section in self.sections.items():
            yield f"{name}: {section.machine}"
            for measure in dict.fromkeys(row.measure for row in section.rows):
                yield ""
                yield measure
                yield from (f"  {row.line}" for row in section.rows if row.measure == measure)
            yield ""


def _row(content: Mapping[str, object]) -> Row:
    row = Row(**content)  # type: ignore[arg-type]  # the types are those that `write` has written
    return row._replace(rounds=tuple(row.rounds))


# --- the machine ---


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processors = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": next(processors, platform.machine()),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "congestion control": CONGESTION_CONTROL.read_text().strip(),
        "python": platform.python_version(),
        "tornado": version("tornado"),
        "lmdb": version("lmdb"),
        "commit": subprocess.run(commit, cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip(),
    }


def machine_line(facts: Mapping[str, str], *also: str) -> str:
    words = [facts["processor"], f"{facts['cores']} cores", facts["memory"], facts["system"]]
    return ", ".join(word for word in (*words, facts["congestion control"], *also) if word)


# --- two runs ---


class Comparison(NamedTuple):
    """`gain` is how many times better the new median is: more than 1 is better, for each unit."""

    old: Row
    new: Row
    gain: float
    verdict: str

    def __str__(self) -> str:
        old, new = number(self.old.value), number(self.new.value)
        return f"  {self.new.subject:<28} {old:>10} {new:>10}   {self.gain:5.2f}x  {self.verdict}".rstrip()


def compared(old: Row, new: Row) -> Comparison | None:
    """None if one of them has no figure. A figure is better or worse if its median moved enough and the
    middle halves of its rounds do not overlap."""
    if not old.value or not new.value:
        return None
    gain = old.value / new.value if new.is_cost else new.value / old.value
    least = LEAST if min(len(old.rounds), len(new.rounds)) > 1 else LEAST_ALONE
    (low, high), (lower, higher) = _middle_half(old), _middle_half(new)
    overlap = low <= higher and lower <= high
    if max(gain, 1 / gain) < 1 + least or overlap:
        return Comparison(old, new, gain, "")
    return Comparison(old, new, gain, "better" if gain > 1 else "WORSE")


def _middle_half(row: Row) -> tuple[float, float]:
    if len(row.rounds) < 2:
        return (row.value or 0.0, row.value or 0.0)
    quarters = statistics.quantiles(row.rounds, n=4, method="inclusive")
    return quarters[0], quarters[2]


def comparison(old: Results, new: Results) -> tuple[list[str], bool]:
    """Lines to print, and whether no row of ours got worse."""
    lines = list[str]()
    for name in new.sections.keys() & old.sections.keys():
        both = [run.sections[name] for run in (old, new)]
        lines += [f"{name}: old {both[0].machine}", f"{name}: new {both[1].machine}"]
        before, after = (each.facts["arguments"] for each in both)
        lines += [f"the runs differ: perf {before!r} and perf {after!r}"] if before != after else []
    earlier = {(row.measure, row.subject): row for row in old.rows}
    later = {(row.measure, row.subject): row for row in new.rows}
    pairs = [(earlier[name], row) for name, row in later.items() if name in earlier]
    found = [each for pair in pairs if (each := compared(*pair)) is not None]
    for measure in dict.fromkeys(each.new.measure for each in found):
        block = [each for each in found if each.new.measure == measure]
        lines += ["", f"{measure} ({block[0].new.unit})", *map(str, block)]
    lines += ["", *(f"only in the new run: {': '.join(name)}" for name in later if name not in earlier)]
    lines += [f"only in the old run: {': '.join(name)}" for name in earlier if name not in later]
    ours = [each for each in found if each.new.is_ours]
    lines += _summary("streamsrv", ours)
    lines += _summary("peers, disk and libraries", [each for each in found if not each.new.is_ours])
    return lines, not any(each.verdict == "WORSE" for each in ours)


def _summary(whose: str, found: Sequence[Comparison]) -> Iterator[str]:
    if found:
        gain = statistics.geometric_mean(each.gain for each in found)
        better, worse = (sum(each.verdict == word for each in found) for word in ("better", "WORSE"))
        yield f"{whose}: {len(found)} figures, {better} better, {worse} worse, {gain:.2f}x on average"
