"""The verb `salvage`: the instances of segments in folders and buckets, without their store. The work is in
store/maintenance/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import InstanceError, StreamsrvError
from streamsrv.ingest.derivation import derive
from streamsrv.store import InstanceKey, Record
from streamsrv.store.maintenance.check import Finding
from streamsrv.store.maintenance.salvage import Salvage
from streamsrv.tools.file_names import safe_name
from streamsrv.tools.progress import ProgressLine
from streamsrv.verbs import of_objects, print_findings

EXAMPLE = """\
Example: the disk of the index is lost, and with it store.toml.

    streamsrv salvage /mnt/rescued /mnt/old-disk/data/segments

The segments of a cluster, whose database is lost:

    streamsrv salvage /mnt/rescued s3://archive/store

The exit code is 0 if every record is whole, 1 if something is damaged, which is named.
"""
LIMITS = ReadLimits(max_attributes=0, max_metadata=1 << 62, max_elements=1 << 62, max_fragments=1 << 62)


def add_salvage_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder of the files; it may exist")
    parser.add_argument(
        "segments",
        metavar="SEGMENT",
        nargs="+",
        help="a segment, a folder with *.seg files, or the bucket of a cluster, s3://bucket/prefix",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON document on standard output instead of text"
    )


def run_salvage(args: argparse.Namespace) -> int:
    """Raises StreamsrvError if there is no segment, if another run works in OUT, or if a bucket does not
    answer."""
    paths = list(segments_of([Path(each) for each in args.segments if not is_bucket(each)]))
    buckets = [of_objects("salvage").StoredBucket(each) for each in args.segments if is_bucket(each)]
    total = sum(path.stat().st_size for path in paths) + sum(bucket.size() for bucket in buckets)
    if not total:
        raise StreamsrvError(
            "no segment was found: give files of the folder `segments`, or this folder, or the place of a "
            "cluster as `segments` names it"
        )
    args.out.mkdir(mode=0o700, parents=True, exist_ok=True)
    findings: list[Finding] = []
    with (
        Salvage(args.out, findings.append, key_of, safe_name) as salvage,
        ProgressLine(sys.stderr) as progress,
    ):
        before = 0

        def draw(done: int) -> None:
            progress.draw(before + done, total)

        for path in paths:
            salvage.look_at(path)
        for path in paths:
            salvage.take_file(path, draw)
            before += path.stat().st_size
        for bucket in buckets:
            for size in bucket.take(salvage, args.out, draw):
                before += size
        salvage.finish()
    return print_findings(args, findings, asdict(salvage.counts))


def is_bucket(place: str) -> bool:
    return place.startswith("s3://")


def segments_of(paths: Sequence[Path]) -> Iterator[Path]:
    """The files, and those of folders in ascending order. A file is given once."""
    seen = set[Path]()
    for path in paths:
        for each in sorted(path.glob("*.seg")) if path.is_dir() else (path,):
            if each.resolve() not in seen:
                seen.add(each.resolve())
                yield each


def key_of(record: Record) -> InstanceKey | None:
    """None if the bytes of the record are no instance, or cannot be read."""
    try:
        return derive(record, LIMITS)[1].row.key
    except (InstanceError, OSError):
        return None


VERBS = {"salvage": (add_salvage_arguments, run_salvage)}
