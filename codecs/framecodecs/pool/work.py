"""The work of pixel processes: batches of frames of one instance, in and out.

`FramePool.submit` takes these functions, or another function of an importable module. Its first argument is a
FrameBatch. It returns (bytes, FrameInfo or None) for each frame.
"""

from __future__ import annotations

from framecodecs import registry
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.pool.messages import Result
from framecodecs.rendering import pictures
from framecodecs.rendering.pictures import PictureRequest


class FrameBatch(list[bytes]):
    """The frames of a task. `cores` is the number of cores that a library may use for each of them."""

    cores = 1


def decode_frames(frames: FrameBatch, uid: str, info: FrameInfo, words: bool = False) -> list[Result]:
    return [registry.decode(frame, uid, info, words=words, cores=frames.cores) for frame in frames]


def transcode_frames(
    frames: FrameBatch,
    from_uid: str,
    to_uid: str,
    info: FrameInfo,
    options: EncodeOptions | None = None,
    words: bool = False,
) -> list[Result]:
    return [
        registry.transcode(frame, from_uid, to_uid, info, options=options, words=words, cores=frames.cores)
        for frame in frames
    ]


def render_frames(
    frames: FrameBatch, uid: str, info: FrameInfo, request: PictureRequest, words: bool = False
) -> list[Result]:
    """Makes a picture file of each frame."""
    return [(pictures.rendered(frame, uid, info, request, words, frames.cores), None) for frame in frames]


def animate_frames(
    frames: FrameBatch, uid: str, info: FrameInfo, request: PictureRequest, words: bool = False
) -> list[Result]:
    """Makes a block of an animated GIF of each frame."""
    return [(pictures.animated(frame, uid, info, request, words, frames.cores), None) for frame in frames]
