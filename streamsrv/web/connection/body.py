"""The body of one store request on its way from the connection into an Upload.

Strategy: a body of known length is read here, by read_into into one buffer that is used again, before Tornado
looks for it. It is read a slice in each turn, and written when the buffer is full. A chunked body comes
through Tornado, chunk by chunk.

Rules of this file
- While the Upload works, the client is not waited for: the meter is paused.
- After an error the stream may still hold the buffer. It is then left to the garbage collector.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from typing import cast

from tornado.ioloop import IOLoop

from streamsrv.web.app import App
from streamsrv.web.connection.clients import Meter
from streamsrv.web.connection.stream import Stream
from streamsrv.web.forms import ShortForm
from streamsrv.web.stow import Buffer, Upload

# Bytes that are read in one turn of the loop, if no other body moves.
SLICE = 2 << 20


class Listening:
    """Whether the loop looks at the stream's socket. While a body is fed it must not: the stream would read
    on, 64 kB in each turn of the loop, into a buffer of its own that has to be copied."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._paused = False

    def pause(self) -> None:
        if not self._paused and not self._stream.closed():
            # remove_reader tells whether there was one; update_handler makes Tornado know of it.
            self._paused = asyncio.get_running_loop().remove_reader(self._stream.fileno())
            if self._paused:
                self._stream.io_loop.update_handler(self._stream.fileno(), 0)

    def resume(self) -> None:
        if self._paused and not self._stream.closed():
            self._stream.io_loop.update_handler(self._stream.fileno(), IOLoop.READ | IOLoop.ERROR)
        self._paused = False


async def read_body(app: App, stream: Stream, length: int, upload: Upload | ShortForm, meter: Meter) -> None:
    """The hot loop of an upload."""
    if isinstance(upload, Upload) and upload.is_short:
        await read_short(app, stream, length, upload, meter)
        return
    buffer = app.buffers.take()
    view, at, left, bodies = memoryview(buffer), 0, length, app.watch.bodies
    # The stream counts our buffer as its own; at all other times its own stays small.
    usual, stream.max_buffer_size = stream.max_buffer_size, 2 * len(buffer)
    listening = Listening(stream)
    listening.pause()
    try:
        while left:
            await bodies.turn()
            most = min(left, app.watch.share(SLICE))
            read = cast(Future[int], stream.read_into(cast(bytearray, view[at : at + most]), partial=True))
            if not read.done():
                listening.resume()
                await read
                listening.pause()
                await bodies.turn()
            count = read.result()
            left -= count
            filled = at + count
            # Beside others it is written at once: all of it would keep them waiting for a millisecond or two.
            full = min(len(buffer) - SLICE + 1, app.watch.share(len(buffer)))
            stays = filled < full and left > 0
            await feed(upload, buffer, count, meter, start=at, stays=stays)
            at = filled if stays else 0
    finally:
        listening.resume()
    stream.max_buffer_size = usual
    view.release()
    app.buffers.give(buffer)


async def read_short(app: App, stream: Stream, length: int, upload: Upload, meter: Meter) -> None:
    """All of it into one buffer, from which it is stored: nothing has to be done between two reads."""
    buffer, bodies = app.buffers.take(), app.watch.bodies
    view, at = memoryview(buffer), 0
    usual, stream.max_buffer_size = stream.max_buffer_size, 2 * len(buffer)
    while at < length:
        await bodies.turn()
        count = await stream.read_into(cast(bytearray, view[at:length]), partial=True)
        meter.moved += count
        at += count
    stream.max_buffer_size = usual
    view.release()
    upload.arrived(buffer, length, app.buffers.give)


async def feed(
    upload: Upload | ShortForm, chunk: Buffer, size: int, meter: Meter, *, start: int = 0, stays: bool = False
) -> None:
    meter.moved += size
    meter.pause()
    try:
        await upload.feed(chunk, size, start=start, stays=stays)
    finally:
        meter.resume()
