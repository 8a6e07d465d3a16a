"""The libraries that decode and encode. They load at their first use, so that a process that never decodes
never loads them.

`guarded` surrounds every call into a library: each exception becomes an error of framecodecs. (A panic in a
Rust library is a BaseException.) It does not catch a crash or a hang: for those there is the pool of
processes.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from framecodecs.errors import DecodeError, EncodeError, FrameCodecError, MemoryExceeded, Unsupported

BUILT_IN = "framecodecs"
CHECK_SECONDS = 10


@dataclass(frozen=True)
class Library:
    """`package` is installed by pip, `module` is imported."""

    package: str
    module: str
    licence: str

    @property
    def hint(self) -> str:
        return f"pip install {self.package}"


LIBRARIES = {
    library.package: library
    for library in (
        Library(BUILT_IN, "framecodecs.samples", "Apache-2.0"),
        Library("imagecodecs", "imagecodecs", "BSD-3-Clause"),
        Library("pyjpegls", "jpeg_ls", "MIT"),
        Library("pylibjpeg-openjpeg", "openjpeg.utils", "MIT"),
        Library("pylibjpeg-rle", "rle.rle", "MIT"),
        Library("pillow", "PIL.Image", "MIT-CMU"),
    )
}


@cache
def available(package: str) -> bool:
    """Returns whether the library is installed. Imports no more than its parent package."""
    return importlib.util.find_spec(LIBRARIES[package].module.partition(".")[0]) is not None


@cache
def load(package: str, submodule: str = "") -> ModuleType:
    """Returns the library's module (or `submodule`). Raises Unsupported, with a hint, if it does not load."""
    library = LIBRARIES[package]
    try:
        return importlib.import_module(submodule or library.module)
    except ImportError as error:
        raise Unsupported(f"{package} is not installed or does not load", library.hint) from error


def carried(package: str, names: str) -> Iterator[ctypes.CDLL]:
    """Yields the shared libraries in the wheel of a library that match the pattern `names`, and load."""
    if available(package):
        beside = Path(str(load(package).__file__)).parent.parent / f"{package}.libs"
        for path in sorted(beside.glob(names)):
            with suppress(OSError):
                yield ctypes.CDLL(str(path))


def passes(check: Callable[[], bool]) -> bool:
    """Returns the result of a self-check that runs in a child process: a crash and a hang are failures, too.
    A pixel process calls it while it has one thread, so the child inherits no lock."""
    try:
        child = os.fork()
    except OSError:
        return False
    if child:
        return os.waitpid(child, 0)[1] == 0
    passed = False
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHECK_SECONDS)
        passed = check()
    finally:
        os._exit(0 if passed else 1)


@contextmanager
def guarded(kind: type[DecodeError] | type[EncodeError], codec: str) -> Iterator[None]:
    """Turns every exception of a library into `kind`."""
    try:
        yield
    except (FrameCodecError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise MemoryExceeded(f"{codec}: out of memory") from error
    except BaseException as error:
        raise kind(f"{codec}: {type(error).__name__}: {str(error)[:200]}") from error
