"""README's figures and picture, made of a run. A test compares README with the text that is made here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import pyplot

from perf.results import COPY, NGINX, ORTHANC, OURS, RESULTS, Results, Row, machine_line, number
from perf.servers import ROOT
from perf.table import Judgement, judgements

README = ROOT / "README.md"
PICTURE = RESULTS / "targets.svg"
OPENING = re.compile(r"<!-- python -m perf publish (\S+) -->\n")
CLOSING = "<!-- published -->\n"
# The rows that README shows.
SHOWN = [
    re.compile(pattern)
    for pattern in (
        r"store \d+ CT instances of 526 kB, one POST",
        r"store one instance of 2.26 GB",
        r"retrieve the study, 4 at once",
        r"frames of 524 kB, 16 at once",
        r"frames of 21 kB, 64 at once",
        r"metadata of \d+ instances, plain, 16 at once",
        r"the studies of a patient, 16 at once",
        r"CT of 524 kB: JPEG-LS",
        r"a frame of a multi-frame rendered.*",
        r"delete \d+ CT instances of 526 kB",
    )
]
HOLDS, FAILS = "#2a9d55", "#d1495b"
LEAST, MOST = 0.1, 20.0  # of a bound; a share beyond is drawn at the edge


def shown(rows: Sequence[Row]) -> list[Row]:
    """In the order of `SHOWN`: of each measure our row, and the best row of each peer."""
    found: list[Row] = []
    for pattern in SHOWN:
        for measure in dict.fromkeys(row.measure for row in rows if pattern.fullmatch(row.measure)):
            block = [row for row in rows if row.measure == measure and row.value is not None]
            block = [row for row in block if row.unit == block[0].unit]
            for name in (OURS, COPY, NGINX, ORTHANC):
                there = [row for row in block if row.subject.partition(", ")[0] == name]
                there = [row for row in there if name != OURS or row.subject == OURS]
                if there:
                    best = min if there[0].is_cost else max
                    found.append(best(there, key=lambda row: row.value or 0.0))
    return found


def section(name: str, results: Results) -> str:
    """The part of README, without the lines that mark it."""
    lines = [f"Measured on {_machine(results)}.", f"`python -m perf show {name}` prints all rows and rounds."]
    lines += ["", f"![claims and results]({PICTURE.relative_to(ROOT)})", ""]
    lines += _claims(judgements(results.rows))
    lines += ["", *_table(shown(results.rows))]
    return "\n".join(lines) + "\n"


def _machine(results: Results) -> str:
    every = [part.facts for part in results.sections.values()]
    days = sorted(facts["date"].partition("T")[0] for facts in every)
    return machine_line(every[0], " to ".join(dict.fromkeys((days[0], days[-1]))))


def _claims(claims: Sequence[Judgement]) -> Iterator[str]:
    failed = [claim for claim in claims if not claim.holds]
    held = f"{len(claims) - len(failed)} of {len(claims)} claims hold (green)."
    yield held + (" These fail (red):" if failed else "")
    if failed:
        yield ""
    yield from (f"- {one.text}: {number(one.value)} {one.unit}, wanted {one.wanted}" for one in failed)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | streamsrv | floor | Orthanc |"
    yield "| --- | --- | --- | --- |"
    for measure in dict.fromkeys(row.measure for row in rows):
        block = {row.subject.partition(",")[0]: row for row in rows if row.measure == measure}
        unit = next(iter(block.values())).unit
        floors = [block[name] for name in (COPY, NGINX) if name in block]
        floor = "; ".join(f"{row.subject} {number(row.value)}" for row in floors)
        ours, theirs = (number(block[name].value) if name in block else "" for name in (OURS, ORTHANC))
        yield f"| {measure}, {unit} | {ours} | {floor} | {theirs} |".replace("  ", " ")


def rewritten(readme: str, name: str, results: Results) -> str:
    """Raises ValueError if the marks are not there."""
    opening = OPENING.search(readme)
    if opening is None or CLOSING not in readme:
        raise ValueError("README has no marks for the figures")
    mark = f"<!-- python -m perf publish {name} -->\n"
    end = readme.index(CLOSING)
    return readme[: opening.start()] + mark + "\n" + section(name, results) + "\n" + readme[end:]


def publish(name: str, results: Results) -> None:
    README.write_text(rewritten(README.read_text(), name, results))
    draw(PICTURE, judgements(results.rows), _machine(results))


def draw(path: Path, claims: Sequence[Judgement], heading: str) -> None:
    """A bar for each claim: the share of its bound that is reached. Green ones hold, red ones fail. The same
    claims give the same bytes."""
    pyplot.switch_backend("svg")
    fonts = ["DejaVu Sans", "sans-serif"]
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "perf", "font.family": fonts})
    figure, axes = pyplot.subplots(figsize=(7.0, 0.21 * max(len(claims) + 2, 4)))
    for line, claim in enumerate(claims):
        reached = min(max(claim.reached, LEAST), MOST)
        left, width = min(1.0, reached), abs(reached - 1.0)
        axes.barh(line, width, left=left, height=0.7, color=HOLDS if claim.holds else FAILS)
        text = f"{number(claim.value)} {claim.unit} (wanted {claim.wanted})"
        axes.text(MOST * 1.08, line, text, va="center", fontsize=8)
    axes.set_yticks(range(len(claims)), [claim.text for claim in claims], fontsize=8)
    axes.set_xscale("log")
    ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set(xlim=(LEAST, MOST), ylim=(len(claims) - 0.4, -0.6))
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(heading, fontsize=8, loc="left", color="#404040")
    figure.patch.set_facecolor("white")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)
    pyplot.close(figure)
    # git rejects lines that end in a space.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
