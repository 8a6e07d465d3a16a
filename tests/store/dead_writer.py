"""A process that dies in the middle of a commit: the file has it, readers have not been told.

LMDB's writer makes a commit durable, and then writes its number into the lock file, where readers look. A
process that holds the writer's lock is killed, and that number is set back meanwhile: this is what a death
between the two leaves."""

import mmap
import os
import signal
import subprocess
import sys

HOLDER = """
import lmdb, sys, time
environment = lmdb.open(sys.argv[1], map_size=1 << 30, max_dbs=20)
transaction = environment.begin(write=True)
print("holding", flush=True)
time.sleep(60)
"""
NUMBER_AT = 48  # in lock.mdb: behind magic, format and a mutex


def unannounce(index_folder, commits=1):
    """Readers of the index see it as it was before its last commits, until a writer begins."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(index_folder)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "holding\n"
        descriptor = os.open(index_folder / "lock.mdb", os.O_RDWR)
        with mmap.mmap(descriptor, 4096) as lock:
            number = int.from_bytes(lock[NUMBER_AT : NUMBER_AT + 8], "little")
            lock[NUMBER_AT : NUMBER_AT + 8] = (number - commits).to_bytes(8, "little")
        os.close(descriptor)
        holder.send_signal(signal.SIGKILL)
    return number
