"""Loads all libraries before a process is confined.

Libraries load parts of themselves at their first use, and a confined process cannot open a file. So `prepare`
uses each transfer syntax and each picture format once, on frames of its own. The self-checks of charls.py and
libjpeg.py run then, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from framecodecs import registry
from framecodecs.errors import FrameCodecError
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import LIBRARIES, available
from framecodecs.rendering import pictures
from framecodecs.rendering.annotations import Notes
from framecodecs.rendering.pictures import PictureRequest, Viewport

NATIVE = "1.2.840.10008.1.2.1"
SIDE = 16
KINDS = (
    FrameInfo(SIDE, SIDE),
    FrameInfo(SIDE, SIDE, 1, 16, 12, 11),
    FrameInfo(SIDE, SIDE, 1, 16, 16, 15, 1),
    FrameInfo(SIDE, SIDE, 3, photometric_interpretation="RGB"),
)


def prepare(modules: Sequence[str] = ()) -> None:
    """Imports `modules` and all installed libraries, and uses each library."""
    for module in ("framecodecs.pool.work", *modules):
        importlib.import_module(module)
    for package, library in LIBRARIES.items():
        if available(package):
            with suppress(ImportError):  # a task that needs it raises Unsupported
                importlib.import_module(library.module)
    for uid in registry.SYNTAXES:
        for info in KINDS:
            _use_syntax(uid, info)
    for media_type in pictures.FORMATS:
        for info in (KINDS[0], KINDS[-1]):
            _use_format(media_type, info)


def _use_syntax(uid: str, info: FrameInfo) -> None:
    with suppress(FrameCodecError):
        coded, now = registry.encode(bytes(info.frame_length), uid, info)
        registry.decode(coded, uid, now)
        for target in registry.SYNTAXES:
            if (uid, target) in registry.DIRECT:
                restored = registry.transcode(coded, uid, target, now)
                registry.transcode(restored[0], target, uid, restored[1])


def _use_format(media_type: str, info: FrameInfo) -> None:
    request = PictureRequest(media_type=media_type, viewport=Viewport(8, 8), notes=Notes(("a",), ("b",)))
    with suppress(FrameCodecError):
        profiled = replace(request, icc_profile=pictures.srgb_profile(), convert_to_srgb=True)
        for one in (request, profiled):
            pictures.rendered(bytes(info.frame_length), NATIVE, info, one)
        pictures.animated(bytes(info.frame_length), NATIVE, info, request)
