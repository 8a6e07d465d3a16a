"""`python -m perf [--quick] [MEASURE...]`: measures, shows, writes perf/results/. Exit code 1 if a claim
fails."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from perf.fairness import fairness
from perf.frames import small_answers
from perf.large import large
from perf.lists import frame_lists
from perf.measures import Size, indexing, single_posts
from perf.memory import MemorySize, bounded_memory
from perf.metadata import study_metadata
from perf.mixed import mixed_load
from perf.pixels import pixels
from perf.plots import blocks
from perf.report import Finding, Report, machine, machine_line
from perf.scale import QUICK_STAGES as QUICK_SIZES
from perf.scale import STAGES as SIZES
from perf.scale import scale
from perf.search import QUICK_STAGES, STAGES, search
from perf.search_peers import search_peers
from perf.small import latency
from perf.study import ct_study

MEASURES: dict[str, Callable[[Size], Iterator[Finding]]] = {
    "study": ct_study,
    "large": large,
    "single": single_posts,
    "index": indexing,
    "frames": small_answers,
    "lists": frame_lists,
    "metadata": study_metadata,
    "mixed": mixed_load,
    "latency": latency,
    "fairness": fairness,
    "pixels": pixels,
    "searches": search_peers,
}


LONG = ("search", "scale")
NAMES = (*MEASURES, "memory", *LONG)


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    parser.add_argument(
        "measures",
        nargs="*",
        metavar="MEASURE",
        help=f"some of {', '.join(NAMES)} (default: all but search and scale, which take ten minutes each)",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, for a look")
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure (default: a temporary folder here)"
    )
    parser.add_argument("--large", metavar="BYTES", type=int, help="of memory's one instance (10 GB)")
    parser.add_argument("--instances", metavar="N", type=int, help="of memory's study (2000)")
    parser.add_argument("--each", metavar="BYTES", type=int, help="of each of memory's eight uploads (1 GB)")
    parser.add_argument(
        "--archive", type=Path, help="holds the data folder that search or scale measures as it is"
    )
    parser.add_argument("--name", default="latest", help="of the files in perf/results (latest)")
    args = parser.parse_args(words)
    unknown = set(args.measures) - set(NAMES)
    if unknown:
        parser.error(f"there is no measure {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    args.measures = args.measures or [name for name in NAMES if name not in LONG]
    return args


def study_size(args: argparse.Namespace, folder: Path) -> Size:
    if not args.quick:
        return Size(folder)
    return Size(
        folder,
        instances=100,
        rounds=3,
        seconds=1.0,
        small_instances=2_000,
        tiles=400,
        cold_bytes=200 << 20,
        large=226_000_000,
        largest=0,
        loop=2_000,
        slide=10_000,
        rest=0.5,
    )


def memory_size(args: argparse.Namespace, folder: Path) -> MemorySize:
    scale = 10 if args.quick else 1
    return MemorySize(
        folder,
        args.large or MemorySize(folder).large // scale,
        args.instances or MemorySize(folder).instances // scale,
        args.each or MemorySize(folder).each // scale,
    )


def findings_of(name: str, args: argparse.Namespace, folder: Path) -> Iterator[Finding]:
    if name == "search":
        return search(folder, QUICK_STAGES if args.quick else STAGES, args.archive)
    if name == "scale":
        return scale(folder, QUICK_SIZES if args.quick else SIZES, args.archive)
    if name == "memory":
        return bounded_memory(memory_size(args, folder))
    return MEASURES[name](study_size(args, folder))


def repeatable(words: list[str]) -> list[str]:
    """The command line without folders: where a machine keeps its disk is nobody else's."""
    kept = [word for word in words if not word.startswith(("--folder=", "--archive="))]
    for flag in ("--folder", "--archive"):
        while flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    return kept


def main(words: list[str]) -> int:
    args = arguments(words)
    # Whoever ends a measurement ends its servers too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    report = Report()
    for name in args.measures:
        # A folder a measure: what one has written is gone before the next begins.
        with tempfile.TemporaryDirectory(prefix="perf-", dir=args.folder or Path.cwd()) as folder:
            print(name, flush=True)
            try:
                report.add(name, findings_of(name, args, Path(folder)))
            except Exception as fault:  # whatever it is: the others go on
                traceback.print_exc()
                report.broke(name, fault)
        # After each: half an hour of figures should not be lost with the last one.
        paths = report.write(args.name, " ".join(repeatable(words)))
    paths.append(paths[0].with_suffix(".svg"))
    blocks(paths[-1], report.rows, machine_line(machine()))
    print("\n".join(["", *report.table(), "", *map(str, paths)]))
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
