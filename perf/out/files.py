"""The verb `export` beside an archive.

The archive of tiny instances grows in steps, so that the memory of the verb is seen beside their number.
Transactions of the store write it, without HTTP.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage

from perf import bodies
from perf.out.verbs import verb
from perf.results import OURS, Row
from perf.run import Run
from perf.servers import MemorySampler, cpu_seconds
from streamsrv.config import load
from streamsrv.store import Store, StoreOptions
from streamsrv.tools.incoming.store_landing import StoreDestination

A_STUDY, TRANSACTION = 500, 2_000  # instances
PATIENT = b"P0000000"


def exporting(run: Run) -> Iterator[Row]:
    data, out, made = run.folder / "data", run.folder / "exported", 0
    for instances in run.size.archives:
        _grow(data, made, instances)
        made = instances
        begin = time.perf_counter()
        process = verb("export", out, "--data", data, "--quiet")
        with MemorySampler(process.pid, 0) as memory:
            used = _cpu_until_end(process)
        seconds = time.perf_counter() - begin
        if process.returncode:
            raise RuntimeError("an instance was not exported")
        shutil.rmtree(out)
        subject, measure = OURS, f"export {instances:,} tiny instances"
        yield Row(measure, subject, instances / seconds)
        yield Row(f"CPU time, {measure}", subject, used * 1e6 / instances)
        yield Row(f"memory, {measure}", subject, memory.growth / 1e6)


def _cpu_until_end(process: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time, as far as they were seen in time."""
    used = 0.0
    while process.poll() is None:
        used = max(used, cpu_seconds(process.pid))
        time.sleep(0.1)
    return used


def _grow(data: Path, first: int, last: int) -> None:
    """Stores the instances from `first` to `last`, in studies of A_STUDY."""
    if not data.exists():
        Store.open(data, StoreOptions()).close()
    destination = StoreDestination(load(None, {}, {"data": str(data)}), "import")
    with contextlib.closing(destination), contextlib.closing(destination.landing()) as landing:
        for number in range(first, last):
            landing.take("", [_tiny(number)])
            if number % TRANSACTION == TRANSACTION - 1:
                landing.flush()
        landing.flush()


def _tiny(number: int) -> bytes:
    """An instance of 700 bytes, without pixels."""
    content = _template()
    for old, new in zip(bodies.keys_of(0), bodies.keys_of(number // A_STUDY, number), strict=True):
        content = content.replace(old.encode(), new.encode())
    return content.replace(PATIENT, b"P%07d" % (number // A_STUDY))


@cache
def _template() -> bytes:
    dataset, file = Dataset(), io.BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = bodies.EXPLICIT_VR_LITTLE_ENDIAN
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = bodies.keys_of(0)
    dataset.SOPClassUID, dataset.Modality, dataset.StudyDate = CTImageStorage, "CT", "20240101"
    dataset.PatientName = dataset.PatientID = PATIENT.decode()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
