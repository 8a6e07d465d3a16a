"""The libraries that do the work: one table, loaded when first needed, so that a process that never decodes
never loads them.

`guarded` is the fence around every call into one: whatever it throws becomes an error of ours. (A panic in
a Rust library arrives as a BaseException.) A crash or a hang passes this fence: that is what the pool of
processes is for.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from framecodecs.errors import DecodeError, EncodeError, FrameCodecError, MemoryExceeded, Unsupported

BUILT_IN = "framecodecs"


@dataclass(frozen=True)
class Library:
    """`module` is imported; `package` is what pip installs."""

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
    """Whether the library is installed; does not import more of it than the parent package."""
    return importlib.util.find_spec(LIBRARIES[package].module.partition(".")[0]) is not None


@cache
def load(package: str, submodule: str = "") -> ModuleType:
    """The library's module (or `submodule`); Unsupported, with what to install, if it is missing or
    broken."""
    library = LIBRARIES[package]
    try:
        return importlib.import_module(submodule or library.module)
    except ImportError as error:
        raise Unsupported(f"{package} is not installed or does not load", library.hint) from error


def first_available(packages: tuple[str, ...]) -> str | None:
    return next((package for package in packages if available(package)), None)


def carried(package: str, names: str) -> Iterator[ctypes.CDLL]:
    """Shared libraries that the wheel of a library brings along, to be called by their C interfaces: those
    whose file names are like `names`, and that load."""
    if available(package):
        beside = Path(str(load(package).__file__)).parent.parent / f"{package}.libs"
        for path in sorted(beside.glob(names)):
            with suppress(OSError):
                yield ctypes.CDLL(str(path))


@contextmanager
def guarded(kind: type[DecodeError] | type[EncodeError], what: str) -> Iterator[None]:
    """Turns whatever a library throws into `kind`."""
    try:
        yield
    except (FrameCodecError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise MemoryExceeded(f"{what}: out of memory") from error
    except BaseException as error:
        raise kind(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error
