"""Two runs side by side: what got better, what got worse, which claims changed.

usage: python -m perf.compare OLD.json NEW.json

A figure is better or worse if the middle halves of its rounds do not overlap and its median moved by at least
a twentieth; one without rounds, if it moved by a quarter. What the peers did meanwhile stands below: where
they moved as well, it was the machine. Exit code 1 if any row of the server got worse, or a claim that held
fails; 2 if a file cannot be read.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from perf.plots import is_ours
from perf.report import Claim, Results, Row, machine_line, number

LEAST, LEAST_ALONE = 0.05, 0.25
# Of these less is better; of everything else, which is so much a second, more.
COSTS = ("ms", "MB", "s/GB", "bytes", "calls")


class Change(NamedTuple):
    """`gain`: how many times better the new median is; more than 1 is better, whatever the unit."""

    old: Row
    new: Row
    gain: float
    verdict: str


def is_cost(unit: str) -> bool:
    return unit.split(" ")[0] in COSTS


def change(old: Row, new: Row) -> Change | None:
    """None where one of the two has no figure."""
    if not old.value or not new.value:
        return None
    gain = old.value / new.value if is_cost(new.unit) else new.value / old.value
    least = LEAST if min(len(old.rounds), len(new.rounds)) > 1 else LEAST_ALONE
    moved = max(gain, 1 / gain) >= 1 + least
    if not moved or _overlap(old, new):
        return Change(old, new, gain, "")
    return Change(old, new, gain, "better" if gain > 1 else "WORSE")


def _overlap(old: Row, new: Row) -> bool:
    """Whether the middle halves have anything in common; rows without rounds have none."""
    (low, high), (lower, higher) = _middle(old), _middle(new)
    return low <= higher and lower <= high


def _middle(row: Row) -> tuple[float, float]:
    if len(row.rounds) < 2:
        return (row.value or 0.0, row.value or 0.0)
    quarters = statistics.quantiles(row.rounds, n=4, method="inclusive")
    return quarters[0], quarters[2]


def compared(old: Results, new: Results) -> tuple[list[Change], list[str]]:
    """Changes of the rows that are in both, in the order of the new run; and names of those that are not."""
    before = {(row.measure, row.subject): row for row in old.rows}
    after = {(row.measure, row.subject): row for row in new.rows}
    pairs = [(before[name], row) for name, row in after.items() if name in before]
    changes = [found for pair in pairs if (found := change(*pair)) is not None]
    lonely = [f"only in the new run: {': '.join(name)}" for name in after if name not in before]
    lonely += [f"only in the old run: {': '.join(name)}" for name in before if name not in after]
    return changes, lonely


def changed_claims(old: Sequence[Claim], new: Sequence[Claim]) -> Iterator[tuple[Claim, Claim]]:
    """Those that hold in one run and fail in the other, or whose limit is another one."""
    before = {claim.text: claim for claim in old}
    for claim in new:
        earlier = before.get(claim.text)
        if earlier is not None and (earlier.holds, earlier.limit) != (claim.holds, claim.limit):
            yield earlier, claim


def report(old: Results, new: Results) -> tuple[list[str], bool]:
    """Lines to print, and whether nothing got worse."""
    changes, lonely = compared(old, new)
    lines = [f"old  {machine_line(old.machine)}", f"new  {machine_line(new.machine)}"]
    if old.arguments != new.arguments:
        lines.append(f"the runs were not the same: perf {old.arguments!r} and perf {new.arguments!r}")
    for measure in dict.fromkeys(each.new.measure for each in changes):
        lines += ["", f"{measure} ({next(each.new.unit for each in changes if each.new.measure == measure)})"]
        lines += [_line(each) for each in changes if each.new.measure == measure]
    lines += ["", *lonely] if lonely else []
    claims = list(changed_claims(old.claims, new.claims))
    lines += ["", *(_claim_line(*pair) for pair in claims)] if claims else []
    own = [each for each in changes if is_ours(each.new)]
    lines += ["", *_summary("streamsrv", own)]
    lines += _summary("peers, disk and libraries", [each for each in changes if not is_ours(each.new)])
    worse = any(each.verdict == "WORSE" for each in own)
    return lines, not worse and not any(before.holds and not after.holds for before, after in claims)


def _line(each: Change) -> str:
    old, new = number(each.old.value), number(each.new.value)
    return f"  {each.new.subject:<28} {old:>10} {new:>10}   {each.gain:5.2f}x  {each.verdict}".rstrip()


def _claim_line(old: Claim, new: Claim) -> str:
    words = ("held" if old.holds else "failed", "holds" if new.holds else "FAILS")
    figures = f"{number(old.value)} (wanted {old.limit}), {number(new.value)} (wanted {new.limit}) {new.unit}"
    return f"{words[0]}, now {words[1]}: {new.text}: {figures}"


def _summary(whose: str, changes: Sequence[Change]) -> Iterator[str]:
    if not changes:
        return
    gain = statistics.geometric_mean(each.gain for each in changes)
    better, worse = (sum(each.verdict == word for each in changes) for word in ("better", "WORSE"))
    yield f"{whose}: {len(changes)} figures, {better} better, {worse} worse, {gain:.2f}x on average"


def main(words: list[str]) -> int:
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        old, new = (Results.load(Path(word)) for word in words)
    except (OSError, ValueError) as fault:
        print(fault, file=sys.stderr)
        return 2
    lines, fine = report(old, new)
    print("\n".join(lines))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
