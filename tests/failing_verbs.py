"""Runs a verb of the command line again and again, each time with another of its system calls failing.

It runs in a process of its own, because the library of faults.c must be loaded when a process starts:

    python tests/failing_verbs.py FOLDER KIND:ERROR,... MOST VERB [FLAG ...]

FOLDER has a whole store `whole`, and the control file of the library. For each n a copy of the store is made
and a child runs the verb with call n failing. Then another child runs `check` with nothing failing. A line of
JSON tells n, the exit codes, and the words of both. With MOST 0 every n has its turn.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

from faulty_disk import FaultyDisk

from streamsrv import cli, verbs

VERBS = verbs.VERBS  # loaded here, so that no child loads them
EVERY = 0


def main(folder, faults, most, *verb):
    folder = Path(folder)
    disk = FaultyDisk(folder)
    for fault in faults.split(","):
        kind, error = map(int, fault.split(":"))
        for told in rounds(folder, disk, kind, error, int(most), verb):
            print(json.dumps({"kind": kind} | told), flush=True)


def rounds(folder, disk, kind, error, most, verb):
    """What each of the failing calls of a kind comes to."""
    copy(folder)
    disk.arm(kind, fails=0, error=error, path="/copy/")
    code, said = run_verb(*verb, "--data", str(folder / "copy"))
    assert code == 0, said
    calls = disk.seen
    disk.disarm()
    chosen = (
        range(calls) if most in (EVERY, calls) else sorted({calls * turn // most for turn in range(most)})
    )
    for number in chosen:
        copy(folder)
        disk.arm(kind, skip=number, error=error, path="/copy/")
        code, said = run_verb(*verb, "--data", str(folder / "copy"))
        disk.disarm()
        after = run_verb("check", "--data", str(folder / "copy"))
        yield {"n": number, "of": calls, "code": code, "said": said, "check": after}


def copy(folder):
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(folder / "whole", folder / "copy")


def run_verb(*arguments):
    """(exit code, or minus the signal, what it said) of a verb in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        code = 99
        try:
            code = cli.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


if __name__ == "__main__":
    main(*sys.argv[1:])
