"""README's figures and pictures, from files of results: nobody writes them by hand.

usage: python -m perf.publish NAME... (for perf/results/NAME.json; the runs of one machine)

What several of them measured counts as the last named of them has it.

Writes perf/results/targets.svg and rates.svg, and the part of README between the two lines that mark it. A
test compares README with what this would write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence

from perf import plots
from perf.compare import is_cost
from perf.report import RESULTS, Claim, Results, Row, machine_line, number
from perf.servers import ROOT

README = ROOT / "README.md"
OPENING = re.compile(r"<!-- python -m perf\.publish ([\w .-]+) -->\n")
CLOSING = "<!-- published -->\n"
# What README shows of hundreds of rows.
SHOWN = [
    re.compile(pattern)
    for pattern in (
        r"store \d+ CT instances of 526 kB, one POST",
        r"store one instance of .* GB",
        r"store CT instances one a POST, [18] at once",
        r"retrieve the study, [14] at once",
        r"retrieve one instance of .* GB",
        r"first byte, retrieve one instance of .* GB",
        r"frames of 524 kB.*, 16 at once",
        r"frames of 21 kB.*, (1|16|64) at once",
        r"metadata of \d+ instances, the first request after the store",
        r"metadata of \d+ instances, plain, 16 at once",
        r"the first 100 studies, 16 at once",
        r"the studies of a patient, 16 at once",
        r"the \d+ instances of a series, 16 at once",
        r"CT of 524 kB: (JPEG lossless|JPEG-LS|JPEG 2000|rendered as JPEG|rendered as PNG)",
        r"a frame of a multi-frame rendered.*",
        r"a JPEG tile of a slide decoded.*",
        r"a JPEG tile of a slide rendered \(.*",
        r"delete \d+ CT instances of 526 kB",
        r"delete one instance of .* GB",
        r"mixed load: (stored|a frame)",
    )
]
OWN = "streamsrv"


def shown(rows: Sequence[Row]) -> list[Row]:
    """In the order of `SHOWN`; of each measure ours, and what each peer does best."""
    found: list[Row] = []
    for pattern in SHOWN:
        for measure in dict.fromkeys(row.measure for row in rows if pattern.fullmatch(row.measure)):
            block = [row for row in rows if row.measure == measure and row.value is not None]
            for peer in (OWN, "cp + fsync", "nginx", "Orthanc"):
                there = [row for row in block if row.subject.partition(", ")[0] == peer]
                there = [row for row in there if row.unit == block[0].unit]
                if peer == OWN:
                    there = [row for row in there if row.subject == OWN]
                if there:
                    best = min if is_cost(there[0].unit) else max
                    found.append(best(there, key=lambda row: row.value or 0.0))
    return found


def claims_of(runs: Sequence[Results]) -> list[Claim]:
    return list({claim.text: claim for run in runs for claim in run.claims}.values())


def rows_of(runs: Sequence[Results]) -> list[Row]:
    return list({(row.measure, row.subject): row for run in runs for row in run.rows}.values())


def section(names: Sequence[str], runs: Sequence[Results]) -> str:
    """The part of README, without the lines that mark it."""
    claims = claims_of(runs)
    lines = [_machine(names, runs), ""]
    lines += ["![what is wanted and what is reached](perf/results/targets.svg)", ""]
    lines += _claims(claims)
    lines += ["", "![rates beside the peers](perf/results/rates.svg)", ""]
    lines += _table(shown(rows_of(runs)))
    return "\n".join(lines) + "\n"


def _machine(names: Sequence[str], runs: Sequence[Results]) -> str:
    """The date and the commit are those of each run; the rest is one machine."""
    facts = runs[0].machine
    files = ", ".join(
        f"`perf/results/{name}.txt` ({_day(run)})" for name, run in zip(names, runs, strict=True)
    )
    what = ", ".join(
        word
        for word in (
            facts["processor"],
            f"{facts['cores']} cores",
            facts.get("memory", ""),
            facts["system"],
            facts.get("congestion control", ""),
        )
        if word
    )
    return f"Measured on {what}; all rows and rounds are in {files}."


def _day(run: Results) -> str:
    return run.machine["date"].partition("T")[0]


def _claims(claims: Sequence[Claim]) -> Iterator[str]:
    failed = [claim for claim in claims if not claim.holds]
    yield f"{len(claims) - len(failed)} of {len(claims)} claims hold: green above is reached, red is not." + (
        " These fail:" if failed else ""
    )
    if failed:
        yield ""
    for claim in failed:
        limit = claim.limit.replace(">=", "at least").replace("<=", "at most")
        yield f"- {claim.text}: {number(claim.value)} {claim.unit}, wanted {limit}"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | streamsrv | floor | Orthanc |"
    yield "| --- | --- | --- | --- |"
    for measure in dict.fromkeys(row.measure for row in rows):
        block = {row.subject.partition(",")[0]: row for row in rows if row.measure == measure}
        unit = next(iter(block.values())).unit
        floors = [block[name] for name in ("cp + fsync", "nginx") if name in block]
        floor = "; ".join(f"{row.subject} {number(row.value)}" for row in floors)
        ours, theirs = (number(block[name].value) if name in block else "" for name in (OWN, "Orthanc"))
        yield f"| {measure}, {unit} | {ours} | {floor} | {theirs} |".replace("  ", " ")


def rewritten(readme: str, names: Sequence[str], runs: Sequence[Results]) -> str:
    """Raises ValueError if the marks are not there."""
    opening = OPENING.search(readme)
    if opening is None or CLOSING not in readme:
        raise ValueError("README has no part for what was measured")
    end = readme.index(CLOSING)
    mark = f"<!-- python -m perf.publish {' '.join(names)} -->\n"
    return readme[: opening.start()] + mark + "\n" + section(names, runs) + "\n" + readme[end:]


def main(names: list[str]) -> int:
    if not names:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        runs = [Results.load(RESULTS / f"{name}.json") for name in names]
        README.write_text(rewritten(README.read_text(), names, runs))
    except (OSError, ValueError) as fault:
        print(fault, file=sys.stderr)
        return 2
    heading = machine_line(runs[0].machine)
    plots.targets(RESULTS / "targets.svg", claims_of(runs), heading)
    plots.blocks(RESULTS / "rates.svg", shown(rows_of(runs)), heading)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
