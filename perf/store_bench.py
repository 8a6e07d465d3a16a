"""How fast the store takes bytes, against `cp` and fsync of the same bytes, in alternation on the same disk.

    python -m perf.store_bench [--folder DIR] [--rounds N] [--large-gb G]

Prints JSON: for each workload the MB/s of each round of both, the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from streamsrv.dicom.instance import FrameKind, JsonDataset
from streamsrv.store.rows import InstanceKey, InstanceRow, NewInstance
from streamsrv.store.store import Store, StoreOptions
from streamsrv.store.transaction import Record

MB = 1_000_000
VIEW = 1 << 20  # what a server reads from a socket at once
SYNC_EVERY = 64 << 20
METADATA = os.urandom(1_300)  # a CT's 5.3 kB of JSON, compressed


def described(record: Record, number: int) -> NewInstance:
    """An index entry of the size that a CT's has."""
    study = "1.2.826.0.1.3680043.8.498.1"
    row = InstanceRow(
        key=InstanceKey(study, f"{study}.1", f"{study}.1.{time.time_ns()}.{number}"),
        location=record.location,
        record_id=record.record_id,
        stored_at=record.stored_at,
        digest=record.digest,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax="1.2.840.10008.1.2.1",
        dataset_offset=300,
        deflated=False,
        pixel_offset=1_000,
        pixel_length=record.location.length - 1_000,
        rows=512,
        columns=512,
        pixel_facts=0,
        samples_per_pixel=1,
        bits_allocated=16,
        frame_kind=FrameKind.NATIVE,
        number_of_frames=1,
        frame_base=1_000,
        frame_stride=524_288,
        metadata_length=5_300,
        metadata_slots=2,
    )
    attributes: JsonDataset = {
        "00100020": {"vr": "LO", "Value": ["P1"]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00200013": {"vr": "IS", "Value": [number]},
    }
    return NewInstance(row, [METADATA], b"", [], attributes)


def store(folder: Path, source: Path, instance: int) -> float:
    """Seconds to store `source` in one transaction, as instances, through one buffer as from a socket."""
    buffer = memoryview(bytearray(VIEW))
    waiting: list[tuple[Record, NewInstance]] = []
    with (
        Store.open(folder, StoreOptions(min_free=0)) as opened,
        source.open("rb", buffering=0) as body,
        ThreadPoolExecutor(1) as pool,
    ):
        started = time.perf_counter()
        transaction = opened.begin()
        left = source.stat().st_size
        while left:
            transaction.open_record()
            rest = min(instance, left)
            left -= rest
            while rest:
                count = body.readinto(buffer[: min(VIEW, rest)])
                transaction.write([buffer[:count]])
                rest -= count
                if transaction.unsynced >= SYNC_EVERY:
                    pool.submit(transaction.sync_so_far)
            record = transaction.close_record()
            waiting.append((record, described(record, len(waiting))))
        transaction.commit(waiting)
        return time.perf_counter() - started


def copy(folder: Path, source: Path, _: int) -> float:
    """Seconds of `cp` and an fsync of the copy."""
    folder.mkdir()
    target = folder / "copy"
    started = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    fd = os.open(target, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - started


def make(path: Path, size: int) -> None:
    block = os.urandom(16 << 20)
    with path.open("wb") as out:
        for at in range(0, size, len(block)):
            out.write(block[: size - at])


def compare(folder: Path, name: str, size: int, instance: int, rounds: int) -> dict[str, Any]:
    """The two in alternation; the source stays in memory, so that only the way to the disk is measured."""
    source = folder / f"{name}.source"
    make(source, size)
    rates: dict[str, list[float]] = {"store": [], "cp+fsync": []}
    for number in range(rounds):
        for kind, run in (("store", store), ("cp+fsync", copy)):
            target = folder / f"{name}.{kind}.{number}"
            os.sync()
            rates[kind].append(size / MB / run(target, source, instance))
            shutil.rmtree(target)
    source.unlink()
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    return {
        "bytes": size,
        "instance_bytes": instance,
        "mb_per_second": {kind: [round(value) for value in values] for kind, values in rates.items()},
        "median": {kind: round(value) for kind, value in medians.items()},
        "ratio": round(medians["store"] / medians["cp+fsync"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="a folder on the disk to measure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-gb", type=float, default=2.0, help="size of the single large instance")
    arguments = parser.parse_args()
    large = int(arguments.large_gb * 1e9)
    workloads = {"study of 400 x 526 kB": (400 * 526_000, 526_000), "one large instance": (large, large)}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = {
            name: compare(Path(folder), name, size, instance, arguments.rounds)
            for name, (size, instance) in workloads.items()
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
