"""The body of one store request on its way from the connection into an Upload.

Strategy: one of known length is read here, by read_into with one reused buffer, before Tornado looks for it.
A chunked body comes through Tornado, chunk by chunk.

Rules of this file
- While the Upload works the client is not waited for: the meter is paused.
- After an error the stream may still hold the buffer: then it is left to the garbage collector.
"""

from __future__ import annotations

from typing import cast

from streamsrv.web.admission import Service
from streamsrv.web.pace import Meter
from streamsrv.web.stow import Buffer, Upload
from streamsrv.web.stream import Stream


async def read_body(service: Service, stream: Stream, length: int, upload: Upload, meter: Meter) -> None:
    """The hot loop of an upload."""
    buffer = service.buffers.take()
    view, left = memoryview(buffer), length
    # The stream counts our buffer as its own; at all other times its own stays small.
    usual, stream.max_buffer_size = stream.max_buffer_size, 2 * len(buffer)
    while left:
        most = min(left, service.watch.share(len(buffer)))
        count = await stream.read_into(cast(bytearray, view[:most]), partial=True)
        left -= count
        await feed(upload, buffer, count, meter)
    stream.max_buffer_size = usual
    view.release()
    service.buffers.give(buffer)


async def feed(upload: Upload, chunk: Buffer, size: int, meter: Meter) -> None:
    meter.moved += size
    meter.pause()
    try:
        await upload.feed(chunk, size)
    finally:
        meter.resume()
