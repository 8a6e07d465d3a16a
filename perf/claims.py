"""Measures and claims, and the judgement of the rows of a run by the claims.

A name is a template: a field such as `{n}` stands for text that a run fills in, `{name:A/B}` for A or B. A
claim takes each row
of its measure and subject, and compares the value, or its relation to another subject, with a bound.
"""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from perf.results import OURS, PEERS, Row, number
from perf.run import Run

# nginx with a file that is longer than ours: a row of its own, which no claim takes.
WHOLE = "nginx, a file as long as the whole answer"
USUAL = "streamsrv, no fast path"
LEAST_RATE = "rates in relation to those without: the least"


@dataclass(frozen=True, slots=True)
class Measure:
    """`how` says how it is measured. A run has a row for each subject, with a figure or with the reason why
    there is none."""

    name: str
    unit: str
    subjects: Sequence[str]
    how: str


@dataclass(frozen=True, slots=True)
class Claim:
    """`over` is the subject to compare with, or the best of those that begin with `over, `. Its rows are
    those of the same measure, or of `of`. Relations are of speed if the bound is the least one, of
    time if it is the most."""

    measure: str
    subject: str = OURS
    over: str = ""
    of: str = ""
    at_least: float | None = None
    at_most: float | None = None
    sentence: str = ""


class Verdict(NamedTuple):
    """A claim about the rows of one run."""

    text: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def reached(self) -> float:
        """The share of the bound that is reached; the claim holds from 1 on."""
        if self.at_least is not None:
            return self.value / self.at_least
        assert self.at_most is not None
        return self.at_most / self.value if self.value > 0 else math.inf

    @property
    def holds(self) -> bool:
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def bound(self) -> str:
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        word = "holds" if self.holds else "FAILS"
        return f"{word}  {self.text}: {number(self.value)} {self.unit} (wanted {self.bound}{note})"


@dataclass(frozen=True, slots=True)
class Group:
    """Measures that share servers and studies. `run` yields their rows. `long`: it runs only if it is
    named. `inside`: all of it needs files or processes of the server."""

    name: str
    question: str
    run: Callable[[Run], Iterator[Row]]
    measures: Sequence[Measure]
    claims: Sequence[Claim] = ()
    long: bool = False
    inside: bool = False

    def measure_of(self, row: Row) -> Measure:
        """Raises KeyError if the table has no such measure and subject."""
        for measure in self.measures:
            if matched(measure.name, row.measure) is not None and any(
                matched(subject, row.subject) is not None for subject in measure.subjects
            ):
                return measure
        raise KeyError(f"{row.measure}: {row.subject}")

    def absent(self, rows: Sequence[Row], remote: bool) -> Iterator[Row]:
        """A row with the reason for each subject that has none. `remote`: the server was not started here,
        and peers are left out."""
        there = {row.subject.partition(",")[0] for row in rows if row.value is not None}
        for measure in self.measures:
            names = [row.measure for row in rows if self.measure_of(row) is measure]
            for name in dict.fromkeys(names) or [bare(measure.name)]:
                present = [row.subject for row in rows if row.measure == name]
                for subject in measure.subjects:
                    left_out = remote and subject.startswith(PEERS)
                    if not left_out and not any(matched(subject, each) is not None for each in present):
                        reason = _reason(subject, there, remote)
                        yield Row(name, bare(subject), None, reason, (), measure.unit)


def _reason(subject: str, there: Container[str], remote: bool) -> str:
    if remote:
        return "left out: it needs files, processes or settings of the server"
    absent = subject.startswith(PEERS) and subject.partition(",")[0] not in there
    return "not installed" if absent else "not measured"


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)(?::([^}]*))?\}", template)
    texts = [re.escape(parts[0])]
    for name, choice, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        choices = "|".join(map(re.escape, choice.split("/"))) if choice else ".+?"
        texts += [f"(?P<{name}>{choices})", re.escape(text)]
    return re.compile("".join(texts))


def bare(template: str) -> str:
    """The template with the names of its fields."""
    return re.sub(r"\{(\w+)[^}]*\}", r"\1", template)


def matched(template: str, name: str) -> dict[str, str] | None:
    """The fields of the name; None if it is not of this template."""
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


def judged(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Verdict]:
    """The last verdict of each text."""
    by_measure: dict[str, list[Row]] = {}
    for row in rows:
        if row.value is not None:
            by_measure.setdefault(row.measure, []).append(row)
    found = {}
    for claim in claims:
        for name, block in by_measure.items():
            fields = matched(claim.measure, name)
            for row in block if fields is not None else ():
                subject_fields = matched(claim.subject, row.subject)
                if subject_fields is not None:
                    verdict = _verdict(claim, row, {**(fields or {}), **subject_fields}, by_measure)
                    if verdict is not None:
                        found[verdict.text] = verdict
    return list(found.values())


def _verdict(
    claim: Claim, row: Row, fields: Mapping[str, str], rows: Mapping[str, Sequence[Row]]
) -> Verdict | None:
    bounds = (claim.at_least, claim.at_most)
    if not claim.over:
        assert row.value is not None
        return Verdict(claim.sentence.format(**fields) or row.measure, row.value, row.unit, *bounds)
    others = rows.get(claim.of.format(**fields) or row.measure, ())
    kinds = [each for each in others if each.subject.startswith(f"{claim.over}, ") and each.subject != WHOLE]
    named = [each for each in others if each.subject == claim.over]
    best = max(named or kinds, key=_speed, default=None)
    if best is None:
        return None
    relation = _relation(row, best)
    text = claim.sentence or f"{row.measure}, in relation to {claim.over.removeprefix('streamsrv, ')}"
    note = best.subject.removeprefix(claim.over).lstrip(", ")
    value = relation if claim.at_least is not None else 1 / relation
    return Verdict(text.format(**fields), value, "x", *bounds, note)


def _relation(row: Row, other: Row) -> float:
    """Of speeds. Rounds that ran in turns are compared one by one, so that a slow minute counts for both."""
    pairs = [(row, other)]
    if len(row.rounds) == len(other.rounds) > 1:
        pairs = [
            (row._replace(value=ours), other._replace(value=theirs))
            for ours, theirs in zip(row.rounds, other.rounds, strict=True)
        ]
    return statistics.median(_speed(ours) / _speed(theirs) for ours, theirs in pairs)


def _speed(row: Row) -> float:
    assert row.value is not None
    return 1e3 / row.value if row.is_cost else row.value
