"""Makes the self-checks of charls.py and libjpeg.py crash in the pixel process that imports it."""

import ctypes
import sys

from framecodecs.coders import charls, libjpeg


def crash(library):
    return ctypes.string_at(0)


def libraries_in_use(frames):
    found = [module.__name__ for module in (charls, libjpeg) if module._library() is not None]
    return [(",".join(found).encode() or b"none", None)]


if "pytest" not in sys.modules:
    charls._is_right = libjpeg._is_right = crash
