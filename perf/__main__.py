"""Measures this machine, or the server at a URL, and writes perf/results/NAME.json.

    python -m perf [GROUP...] [--quick] [--folder DIR] [--archive DIR] [--name NAME]
    python -m perf [GROUP...] --url URL [--header "Name: value"]...
    python -m perf show NAME                    rows, rounds and claims of a run
    python -m perf compare OLD NEW              better and worse rows, changed claims
    python -m perf publish NAME                 README's figures and picture

Exit status: 1 if a claim fails, a measure breaks or a row got worse; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from perf.publish import publish
from perf.results import RESULTS, Results, Row, Section, comparison, machine
from perf.run import QUICK, Run, Size
from perf.servers import Service
from perf.table import GROUPS, Group, judgements


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m perf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(GROUPS)
    long = " and ".join(name for name, group in GROUPS.items() if group.long)
    some = f"some of {names} (default: all but {long}, which take longest)"
    for name, about, more in (
        ("groups", some, {"nargs": "*", "metavar": "GROUP"}),
        ("--quick", "a tenth of each size, for a look", {"action": "store_true"}),
        ("--folder", "on the disk to measure (default: a temporary folder here)", {"type": Path}),
        ("--archive", "a folder with an archive that search or scale has grown", {"type": Path}),
        ("--url", "the DICOMweb service of a server that runs already; its studies stay", {}),
        ("--header", 'a header of each request: "Name: value"', {"action": "append", "default": []}),
        ("--name", "of the file in perf/results (latest)", {"default": "latest"}),
    ):
        parser.add_argument(name, help=about, **more)
    args = parser.parse_args(words)
    unknown = set(args.groups) - set(GROUPS)
    if unknown:
        parser.error(f"there is no group {', '.join(sorted(unknown))}; there are {names}")
    args.groups = args.groups or [name for name, group in GROUPS.items() if not group.long]
    try:
        headers = dict(line.split(": ", 1) for line in args.header)
        args.target = Service.at(args.url, headers) if args.url else None
    except ValueError:
        parser.error('--url is an HTTP URL, and --header is "Name: value"')
    return args


def repeatable(words: Sequence[str]) -> str:
    """The command line without values that belong to one machine or are secret."""
    kept, hidden = list[str](), ("--folder", "--archive", "--url", "--header")
    for word, before in zip(words, ["", *words], strict=False):
        if word in ("--url", "--header"):
            kept.append(word)
        elif before not in hidden and not word.startswith(tuple(f"{flag}=" for flag in hidden)):
            kept += [] if word in hidden else [word]
    return " ".join(kept)


def measured(group: Group, run: Run) -> Iterator[Row]:
    """The rows of a group with their units, and a row with the reason for each subject without a figure."""
    rows = list[Row]()
    if run.target is None or not group.inside:
        for row in group.run(run):
            rows.append(row._replace(unit=group.measure_of(row).unit))
            yield rows[-1]
    yield from group.absent(rows, remote=run.target is not None)


def measure(args: argparse.Namespace, words: Sequence[str]) -> int:
    path = RESULTS / f"{args.name}.json"
    results = Results.load(path) if path.exists() else Results()
    complete = True
    for name in args.groups:
        rows = list[Row]()
        # A folder a group: its files are deleted before the next group begins.
        with tempfile.TemporaryDirectory(prefix="perf-", dir=args.folder or Path.cwd()) as folder:
            print(name, flush=True)
            size = QUICK if args.quick else Size()
            try:
                for row in measured(GROUPS[name], Run(Path(folder), size, args.target, args.archive)):
                    rows.append(row)
                    print(f"  {row.measure}: {row.line}", flush=True)
            except Exception as fault:  # the other groups go on
                traceback.print_exc()
                complete = False
                rows.append(Row(name, "not finished", None, f"{type(fault).__name__}: {fault}"))
        print("\n".join(f"  {each}" for each in judgements(rows, [name])), flush=True)
        # The rows of each group are written at once: a later fault does not lose them.
        results.sections[name] = Section(machine() | {"arguments": repeatable(words)}, rows)
        results.write(path)
    print(path)
    rows = [row for name in args.groups for row in results.sections[name].rows]
    return 0 if complete and all(each.holds for each in judgements(rows)) else 1


def show(results: Results) -> int:
    claims = judgements(results.rows)
    print("\n".join([*results.text(), *map(str, claims)]))
    return 0 if all(each.holds for each in claims) else 1


def compare(old: Results, new: Results) -> int:
    lines, fine = comparison(old, new)
    before = {each.text: each for each in judgements(old.rows)}
    for each in judgements(new.rows):
        if each.text in before and before[each.text].holds != each.holds:
            lines += ["", f"{each} (it {'failed' if each.holds else 'held'} in the old run)"]
            fine = fine and each.holds
    print("\n".join(lines))
    return 0 if fine else 1


def main(words: Sequence[str]) -> int:
    command, *names = words or [""]
    wanted = {"show": 1, "compare": 2, "publish": 1}
    if command not in wanted:
        args = arguments(words)
        # The end of a measurement ends its servers, too.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return measure(args, words)
    if len(names) != wanted[command]:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        # A name in perf/results, or a path.
        files = [Path(name) if "/" in name else RESULTS / f"{name}.json" for name in names]
        runs = [Results.load(path) for path in files]
        if command == "publish":
            publish(names[0], runs[0])
            return 0
    except (OSError, ValueError) as fault:
        print(fault, file=sys.stderr)
        return 2
    return show(*runs) if command == "show" else compare(*runs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
