"""The table of measures and claims, `perf/table.md`: its groups, and the judgement of rows by its claims.

A name is a template: a field such as `{n}` stands for text that a run fills in, `{name:A/B}` for A or B. A
claim takes each row of its measure and subject, and compares the value, or its relation to another subject,
with a bound.
"""

from __future__ import annotations

import functools
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from perf.answers import fairness, frames, latency, metadata, places, searches
from perf.archive import scale, search
from perf.cluster import cluster, database
from perf.dimse.associations import dimse
from perf.encryption import tls
from perf.listing import listing
from perf.out.files import exporting
from perf.out.peers import forwarding
from perf.pixels import pixels
from perf.results import OURS, PEERS, WHOLE, Row, number
from perf.run import Run
from perf.studies import large, memory, single, study
from perf.viewer import viewer

RUNS = (study, large, single, frames, places, metadata, latency, fairness, pixels, searches, tls)
LONGER = (memory, search, listing, scale, viewer, cluster, database, dimse, exporting, forwarding)
RUNS_OF = {run.__name__: run for run in (*RUNS, *LONGER)}
INSIDE, LONG = "*inside* ", "*long* "


class Measure(NamedTuple):
    """`how` says how it is measured. A run has a row for each subject, with a figure or with the reason why
    there is none."""

    name: str
    unit: str
    subjects: Sequence[str]
    how: str


class Claim(NamedTuple):
    """`over` is the subject to compare with, or the best of those that begin with `over, `. Its rows are
    those of the same measure, or of `of`. `sign` is `>=` or `<=`. Relations are of speed if the bound is the
    least one, of time if it is the most."""

    measure: str
    subject: str
    sign: str
    bound: float
    over: str = ""
    of: str = ""
    sentence: str = ""


class Judgement(NamedTuple):
    """A claim about the rows of one run."""

    text: str
    value: float
    unit: str
    sign: str
    bound: float
    note: str = ""

    @property
    def reached(self) -> float:
        """The share of the bound that is reached; the claim holds from 1 on."""
        if self.sign == ">=":
            return self.value / self.bound
        return self.bound / self.value if self.value > 0 else math.inf

    @property
    def holds(self) -> bool:
        return self.reached >= 1

    @property
    def wanted(self) -> str:
        return f"at {'least' if self.sign == '>=' else 'most'} {self.bound:g}"

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        word = "holds" if self.holds else "FAILS"
        return f"{word}  {self.text}: {number(self.value)} {self.unit} (wanted {self.wanted}{note})"


@dataclass(frozen=True, slots=True)
class Group:
    """Measures that share servers and studies. `run` yields their rows. `long`: it runs only if it is
    named. `inside`: all of it needs files or processes of the server."""

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
                    is_peer = subject.startswith(PEERS)
                    if any(matched(subject, each) is not None for each in present) or (remote and is_peer):
                        continue
                    reason = "not measured"
                    if remote:
                        reason = "left out: it needs files, processes or settings of the server"
                    elif is_peer and subject.partition(",")[0] not in there:
                        reason = "not installed"
                    yield Row(name, bare(subject), None, reason, (), measure.unit)


# --- templates ---


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


# --- judgement ---


def judged(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Judgement]:
    """The last judgement of each text."""
    figures = [row for row in rows if row.value is not None]
    found = {}
    for claim in claims:
        for row in figures:
            fields, more = matched(claim.measure, row.measure), matched(claim.subject, row.subject)
            if fields is not None and more is not None:
                judgement = _judgement(claim, row, fields | more, figures)
                if judgement is not None:
                    found[judgement.text] = judgement
    return list(found.values())


def _judgement(claim: Claim, row: Row, fields: Mapping[str, str], rows: Sequence[Row]) -> Judgement | None:
    if not claim.over:
        text = claim.sentence.format(**fields) or row.measure
        return Judgement(text, row.value or 0.0, row.unit, claim.sign, claim.bound)
    measure = claim.of.format(**fields) or row.measure
    others = [each for each in rows if each.measure == measure]
    kinds = [each for each in others if each.subject.startswith(f"{claim.over}, ") and each.subject != WHOLE]
    named = [each for each in others if each.subject == claim.over]
    best = max(named or kinds, key=_speed, default=None)
    if best is None:
        return None
    relation = _relation(row, best)
    text = claim.sentence or f"{row.measure}, in relation to {claim.over.removeprefix(f'{OURS}, ')}"
    note = best.subject.removeprefix(claim.over).lstrip(", ")
    value = relation if claim.sign == ">=" else 1 / relation
    return Judgement(text.format(**fields), value, "x", claim.sign, claim.bound, note)


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


# --- the file ---


def read(text: str) -> Iterator[tuple[str, Group]]:
    """Raises TypeError if a row has another number of cells, and ValueError if the groups are not RUNS_OF."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    if set(parts[1::2]) != RUNS_OF.keys():
        raise ValueError(f"the table has {parts[1::2]}")
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        question, _, tables = part.partition("| measure |")
        measures, _, claims = tables.partition("| claim |")
        yield (
            name,
            Group(
                RUNS_OF[name],
                [_measure(*row) for row in _rows(measures)],
                [_claim(*row) for row in _rows(claims)],
                long=LONG in question,
                inside=INSIDE in question,
            ),
        )


def _rows(table: str) -> Iterator[list[str]]:
    """Of the lines below the two of the heading, whose beginning is cut off."""
    for line in table.strip().splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def _measure(name: str, unit: str, subjects: str, how: str) -> Measure:
    return Measure(name, unit, subjects.split("; "), how)


def _claim(measure: str, subject: str, bound: str, over: str, sentence: str) -> Claim:
    sign, value = bound.split(" ")
    other, _, of = over.partition(" of ")
    return Claim(measure, subject, sign, float(value), other, of, sentence)


GROUPS = dict(read(Path(__file__).with_suffix(".md").read_text()))


def judgements(rows: Sequence[Row], groups: Sequence[str] = tuple(GROUPS)) -> list[Judgement]:
    return judged([claim for name in groups for claim in GROUPS[name].claims], rows)
