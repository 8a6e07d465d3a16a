"""Pictures of results: every row of a run; what is wanted and what is reached; rates beside the peers.

Strategy: one set of axes for each picture, whatever it holds, and bars in relation to the longest of their
block: units differ from block to block, and hundreds of axes take minutes. Text stays text, so that a picture
is small and the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perf.report import Claim, Row, number

OURS, PEERS, HOLDS, FAILS = "#1f77b4", "#b0b0b0", "#2a9d55", "#d1495b"
INCHES_A_LINE = 0.21
FOREIGN = ("nginx", "Orthanc", "cp + fsync", "library called directly")
LEAST, MOST = 0.1, 20.0  # of what is wanted; what lies beyond is drawn at the edge


def is_ours(row: Row) -> bool:
    return not row.subject.startswith(FOREIGN)


def blocks(path: Path, rows: Sequence[Row], heading: str = "") -> None:
    """A block for each measure, a bar for each subject."""
    shown = [row for row in rows if row.value is not None]
    measures = list(dict.fromkeys((row.measure, row.unit) for row in shown))
    figure, axes = _page(len(shown) + 1.6 * len(measures), 10.0)
    line = 0.0
    for measure, unit in measures:
        block = [row for row in shown if (row.measure, row.unit) == (measure, unit)]
        most = max(max(row.value or 0.0 for row in block), 1e-12)
        axes.text(0, line, f"{measure} ({unit})", va="center", fontsize=8.5, fontweight="bold")
        for row in block:
            line += 1
            value = row.value or 0.0
            axes.barh(line, value / most, height=0.7, color=OURS if is_ours(row) else PEERS)
            axes.text(-0.01, line, row.subject, va="center", ha="right", fontsize=8)
            axes.text(value / most + 0.01, line, number(row.value), va="center", fontsize=8)
        line += 1.6
    axes.set(xlim=(-0.32, 1.15), ylim=(line - 0.6, -1))
    axes.axis("off")
    _save(figure, path, heading)


def targets(path: Path, claims: Sequence[Claim], heading: str = "") -> None:
    """A bar for each claim: how much of what is wanted is reached. Green ones hold, red ones fail."""
    figure, axes = _page(len(claims) + 2, 7.0)
    for line, claim in enumerate(claims):
        reached = min(max(claim.reached, LEAST), MOST)
        left, width = min(1.0, reached), abs(reached - 1.0)
        axes.barh(line, width, left=left, height=0.7, color=HOLDS if claim.holds else FAILS)
        text = f"{number(claim.value)} {claim.unit} (wanted {claim.limit})"
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
    _save(figure, path, heading)


def _page(lines: float, width: float) -> tuple[Figure, Axes]:
    pyplot.switch_backend("svg")
    pyplot.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "perf", "font.family": ["DejaVu Sans", "sans-serif"]}
    )
    figure, axes = pyplot.subplots(figsize=(width, INCHES_A_LINE * max(lines, 4)))
    return figure, axes


def _save(figure: Figure, path: Path, heading: str) -> None:
    if heading:
        figure.axes[0].set_title(heading, fontsize=8, loc="left", color="#404040")
    figure.patch.set_facecolor("white")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1)
    pyplot.close(figure)
    # A line that ends in a space is no matter to a reader of SVG, but to git it is.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
