"""Animated GIF of the frames of one instance, made while it is sent (PS3.18 10.4.1.1.3).

Strategy: each frame is a block that a pixel process makes; the blocks of a few frames are under way while
others are sent. So an animation costs the memory of a few frames, however long it is.

Rules of this file
- All frames together have at most PICTURES times the pixels of the largest picture
  (`max_rendered_pixels`). Of a loop that has more, or over ANIMATED_FRAMES frames, evenly spaced ones are
  shown, in the same time.
- A viewport that enlarges the frames over that limit is refused before anything is made.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from framecodecs.pool import work
from framecodecs.rendering import animations
from framecodecs.rendering.pictures import picture_size
from streamsrv.errors import BadRequest
from streamsrv.pixels.pool import Order
from streamsrv.pixels.rendering import Renderer
from streamsrv.pixels.transcoding import batches

ANIMATED_FRAMES = 200
PICTURES = 4


def animated_frames(one: Renderer, numbers: Sequence[int]) -> Sequence[int]:
    """The frame indices that are shown. Raises BadRequest if the viewport asks for too many pixels."""
    row, most = one.row, one.pool.max_rendered_pixels * PICTURES
    columns, rows = picture_size(one.wishes.viewport, row.rows, row.columns)
    pixels = columns * rows
    count = min(len(numbers), ANIMATED_FRAMES)
    if pixels * count > most and pixels > row.rows * row.columns:
        raise BadRequest(
            f"the parameter viewport asks for an animation of {count} frames of {columns} x {rows} pixels; "
            f"this server makes at most {most} pixels in all"
        )
    return [number - 1 for number in spaced(numbers, max(1, min(count, most // max(pixels, 1))))]


def spaced(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly."""
    count = min(len(numbers), most)
    return [numbers[place * len(numbers) // count] for place in range(count)]


def animation(one: Renderer, indices: Sequence[int], of: int) -> Generator[bytes, None, None]:
    """The chunks of a GIF of these frames, in the time of a loop of `of` frames. An empty chunk says that
    nothing is ready yet."""
    columns, rows = picture_size(one.wishes.viewport, one.row.rows, one.row.columns)
    start = animations.opening(columns, rows)
    for turn in one.pool.in_turn(_orders(one, indices, of / len(indices))):
        if turn is None or turn[1] is None:
            yield b""
            continue
        blocks = [block for block, _ in one.pool.results(turn[1])]
        yield b"".join((start, *blocks))
        start = b""
    yield animations.CLOSING


def _orders(one: Renderer, indices: Sequence[int], slower: float) -> Iterator[tuple[None, Order]]:
    """Of frames that are shown alike. Those of one order have one request, so it is pickled once."""
    for batch in batches(one.info, indices, one.scaled):
        requests = [one.request(index) for index in batch]
        start = 0
        for place in range(1, len(batch) + 1):
            if place == len(batch) or requests[place] != requests[start]:
                shown = replace(requests[start], milliseconds=requests[start].milliseconds * slower)
                yield None, one.drawn(work.animate_frames, batch[start:place], shown)
                start = place
