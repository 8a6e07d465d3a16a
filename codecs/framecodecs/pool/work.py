"""What workers are asked to do: batches of frames of one instance, in and out.

Functions of this module are what `FramePool.submit` takes; any other function of an importable module that
takes frames first and gives (bytes, FrameInfo or None) back will do too.
"""

from __future__ import annotations

from collections.abc import Sequence

from framecodecs import registry
from framecodecs.frameinfo import FrameInfo
from framecodecs.options import EncodeOptions
from framecodecs.pool.wireform import Result
from framecodecs.rendering import pictures
from framecodecs.rendering.pictures import PictureRequest


def decode_frames(frames: Sequence[bytes], uid: str, info: FrameInfo, words: bool = False) -> list[Result]:
    return [registry.decode(frame, uid, info, words=words) for frame in frames]


def encode_frames(
    frames: Sequence[bytes], uid: str, info: FrameInfo, options: EncodeOptions | None = None
) -> list[Result]:
    return [registry.encode(frame, uid, info, options=options) for frame in frames]


def transcode_frames(
    frames: Sequence[bytes],
    from_uid: str,
    to_uid: str,
    info: FrameInfo,
    options: EncodeOptions | None = None,
    words: bool = False,
) -> list[Result]:
    return [
        registry.transcode(frame, from_uid, to_uid, info, options=options, words=words) for frame in frames
    ]


def render_frames(
    frames: Sequence[bytes], uid: str, info: FrameInfo, request: PictureRequest, words: bool = False
) -> list[Result]:
    """A picture file for each frame."""
    return [(pictures.rendered(frame, uid, info, request, words), None) for frame in frames]


def animate_frames(
    frames: Sequence[bytes], uid: str, info: FrameInfo, request: PictureRequest, words: bool = False
) -> list[Result]:
    """A block of an animated GIF for each frame."""
    return [(pictures.animated(frame, uid, info, request, words), None) for frame in frames]
