"""The table of measures and claims: `perf/table.md`, and the functions that measure its groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from perf.answers import frames, lists, metadata
from perf.claims import Claim, Group, Measure, Verdict, judged
from perf.pixels import pixels
from perf.results import Row
from perf.scale import scale
from perf.searches import search, searches
from perf.shared import fairness, latency, mixed
from perf.studies import index, large, memory, single, study

RUNS = (study, large, single, index, frames, lists, metadata, mixed, latency, fairness, pixels, searches)
RUNS_OF = {run.__name__: run for run in (*RUNS, memory, search, scale)}
INSIDE, LONG = "*inside* ", "*long* "


def read(text: str) -> Iterator[Group]:
    """Raises ValueError if a row has another number of cells, or if the table and RUNS_OF differ."""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    if set(parts[1::2]) != RUNS_OF.keys():
        raise ValueError(f"the table has {parts[1::2]}")
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
        starts = [place for place, row in enumerate(rows) if row[0] in ("measure", "claim")]
        measures = [_measure(*row) for row in rows[2 : (*starts, len(rows))[1]] if row]
        claims = [_claim(*row) for row in rows[starts[1] + 2 :]] if len(starts) > 1 else []
        question = " ".join(line for line in lines if line and line[0] != "|")
        words = question.replace(INSIDE, "").replace(LONG, "")
        run = RUNS_OF[name]
        yield Group(name, words, run, measures, claims, long=LONG in question, inside=INSIDE in question)


def _measure(name: str, unit: str, subjects: str, how: str) -> Measure:
    return Measure(name, unit, subjects.split("; "), how)


def _claim(measure: str, subject: str, bound: str, over: str, sentence: str) -> Claim:
    word, value = bound.split(" ")
    other, _, of = over.partition(" of ")
    least, most = (float(value) if word == each else None for each in (">=", "<="))
    return Claim(measure, subject, other, of, least, most, sentence)


GROUPS = {group.name: group for group in read(Path(__file__).with_suffix(".md").read_text())}


def verdicts(rows: Sequence[Row], groups: Sequence[str] = tuple(GROUPS)) -> list[Verdict]:
    return judged([claim for name in groups for claim in GROUPS[name].claims], rows)
