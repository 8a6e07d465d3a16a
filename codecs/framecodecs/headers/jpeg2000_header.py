"""Headers of JPEG 2000 (ISO/IEC 15444-1 annex A) and High-Throughput JPEG 2000 (15444-15).

Strategy: read the main header (SIZ, COD, QCD, CAP, TLM), then the tile-parts by their lengths, up to EOC.
Nothing is decoded. A codestream may lie in JP2 boxes: PS3.5 A.4.4 forbids them, but files have them.

Rules
- A codestream is cut if a tile-part is longer than the rest, or a tile is missing. So it is if EOC is missing
  after a tile-part of unknown length.
- No component is subsampled, and all have one depth and sign.
- Packets are bounded: libraries allocate for each one, and their number is the product of tiles, layers and
  precincts.
"""

from __future__ import annotations

from dataclasses import dataclass

from framecodecs.errors import CodestreamError
from framecodecs.headers.codestream import CodestreamHeader, big_endian

SOC, SOT, SIZ, CAP, COD, QCD, TLM = 0xFF4F, 0xFF90, 0xFF51, 0xFF50, 0xFF52, 0xFF5C, 0xFF55
PROGRESSIONS = ("LRCP", "RLCP", "RPCL", "PCRL", "CPRL")
# The standard allows 65,535. Each costs a library about 1 kB. A frame of 64 k x 64 k has 256 of 4 k x 4 k.
MAX_TILES = 4_096
# Each takes about 100 bytes in OpenJPEG. A lossless mammogram has 6, a tiled one some thousands.
MAX_PACKETS = 1_000_000
MAX_HEADER_SEGMENTS = 1_000  # real files have under 20
MAX_BIT_PLANES_OF_FAST_LOSSY = 30  # OpenJPH keeps them in 32 bits, and crashes on more
NO_QUANTIZER_STYLE = 31
CODESTREAM_BOX = b"jp2c"


@dataclass(frozen=True)
class Jpeg2000Header(CodestreamHeader):
    """`signed` is from SIZ. `transform` is the multi-component transformation. `levels` is the number of
    decompositions."""

    signed: bool
    high_throughput: bool
    tiles: int
    progression: str
    layers: int
    transform: bool
    levels: int
    reversible: bool
    tile_part_lengths: bool
    depth_at: int


def _codestream_at(frame: bytes) -> tuple[int, int]:
    """Returns the start and end of the codestream: the whole frame, or the contents of its box."""
    if frame[4:8] != b"jP  ":
        return 0, len(frame)
    position = 0
    while position < len(frame):
        length, kind, head = big_endian(frame, position, 4), frame[position + 4 : position + 8], 8
        if length == 1:
            length, head = big_endian(frame, position + 8, 8), 16
        end = position + length if length else len(frame)
        if kind == CODESTREAM_BOX:
            return position + head, min(end, len(frame))
        if end < position + head:
            break
        position = end
    raise CodestreamError("the boxes hold no codestream")


@dataclass
class _SizMarker:
    """The SIZ segment."""

    columns: int
    rows: int
    components: int
    depth: int
    tiles: int
    tile_columns: int
    tile_rows: int
    capabilities: int

    @classmethod
    def read(cls, body: bytes) -> _SizMarker:
        if len(body) < 39 or len(body) != 36 + 3 * big_endian(body, 34, 2):
            raise CodestreamError("SIZ is malformed")
        x, y, x0, y0, tile_w, tile_h, tile_x0, tile_y0 = (big_endian(body, 2 + 4 * i, 4) for i in range(8))
        components = [body[i : i + 3] for i in range(36, len(body), 3)]
        if any(component != bytes((body[36], 1, 1)) for component in components):
            raise CodestreamError("components are subsampled or differ in depth")
        fits = tile_x0 <= x0 < x and tile_y0 <= y0 < y and tile_x0 + tile_w > x0 and tile_y0 + tile_h > y0
        if not fits or not tile_w or not tile_h:
            raise CodestreamError("SIZ places tiles outside the image")
        tiles = -(-(x - tile_x0) // tile_w) * -(-(y - tile_y0) // tile_h)
        if tiles > MAX_TILES:
            raise CodestreamError(f"{tiles} tiles, at most {MAX_TILES} are read")
        return cls(
            columns=x - x0,
            rows=y - y0,
            components=len(components),
            depth=body[36],
            tiles=tiles,
            tile_columns=min(tile_w, x - x0),
            tile_rows=min(tile_h, y - y0),
            capabilities=big_endian(body, 0, 2),
        )


@dataclass
class _Style:
    """The COD segment."""

    progression: int
    layers: int
    transform: int
    levels: int
    reversible: bool
    precincts: list[tuple[int, int]]

    @classmethod
    def read(cls, body: bytes) -> _Style:
        if len(body) < 10:
            raise CodestreamError("COD is malformed")
        style, progression, transform, levels = body[0], body[1], body[4], body[5]
        layers = big_endian(body, 2, 2)
        sizes = body[10:]
        if body[6] > 8 or body[7] > 8 or body[6] + body[7] > 8:
            raise CodestreamError("COD has code-blocks of more than 4,096 samples")
        if progression > 4 or not layers or levels > 32 or (style & 1 and len(sizes) != levels + 1):
            raise CodestreamError("COD is out of range")
        precincts = [(size & 15, size >> 4) for size in sizes] if style & 1 else [(15, 15)] * (levels + 1)
        return cls(progression, layers, transform, levels, body[9] == 1, precincts)

    def packets(self, size: _SizMarker) -> int:
        """Returns the number of packets of the whole image."""
        of_tile = 0
        for resolution, (wide, high) in enumerate(self.precincts):
            shrink = self.levels - resolution
            of_tile += (((size.tile_columns >> shrink) >> wide) + 1) * (
                ((size.tile_rows >> shrink) >> high) + 1
            )
        return of_tile * size.tiles * size.components * self.layers


def _bit_planes(body: bytes, levels: int) -> int:
    """Returns the most bit-planes of a subband by QCD: guard bits and the largest exponent."""
    style = body[0] & 31 if body else NO_QUANTIZER_STYLE
    width = {0: 1, 1: 2, 2: 2}.get(style, 0)
    subbands = 1 if style == 1 else 3 * levels + 1
    if not width or len(body) < 1 + width * subbands:
        raise CodestreamError("QCD is malformed")
    exponents = body[1 : 1 + width * subbands : width]
    return (body[0] >> 5) + (max(exponents) >> 3) - 1


def _main_header(frame: bytes, start: int) -> tuple[dict[int, tuple[int, bytes]], int]:
    """Returns the marker segments before the first tile-part (the last of each kind), and its offset."""
    if big_endian(frame, start, 2) != SOC or big_endian(frame, start + 2, 2) != SIZ:
        raise CodestreamError("the codestream does not begin with SOC and SIZ")
    segments: dict[int, tuple[int, bytes]] = {}
    position = start + 2
    for _ in range(MAX_HEADER_SEGMENTS):
        marker = big_endian(frame, position, 2)
        if marker == SOT:
            return segments, position
        length = big_endian(frame, position + 2, 2)
        if marker < 0xFF50 or length < 2 or (marker in segments and marker in (SIZ, CAP, COD)):
            raise CodestreamError(f"no marker segment of the main header at byte {position}")
        segments[marker] = (position + 4, frame[position + 4 : position + 2 + length])
        position += 2 + length
    raise CodestreamError("the main header has too many segments")


def _end_of_tiles(frame: bytes, position: int, end: int, tiles: int) -> int:
    """Returns the offset behind EOC. Raises CodestreamError if a tile is missing or cut."""
    seen: set[int] = set()
    while position + 2 <= end and big_endian(frame, position, 2) == SOT:
        if position + 12 > end:
            raise CodestreamError("the codestream ends inside a tile-part header")
        tile, length = big_endian(frame, position + 4, 2), big_endian(frame, position + 6, 4)
        if tile >= tiles or (length and length < 14):
            raise CodestreamError(f"tile-part header at byte {position} is out of range")
        seen.add(tile)
        position = position + length if length else frame.rfind(b"\xff\xd9", position, end)
        if position < 0 or position > end:
            raise CodestreamError("the codestream ends inside a tile-part")
    if len(seen) != tiles:
        raise CodestreamError(f"{len(seen)} of {tiles} tiles are there")
    if frame[position : position + 2] != b"\xff\xd9":
        raise CodestreamError("the codestream ends without EOC")
    return position + 2


def read_jpeg2000_header(frame: bytes) -> Jpeg2000Header:
    """Reads a whole JPEG 2000 or HTJ2K codestream. Raises CodestreamError if it is malformed or cut."""
    start, end = _codestream_at(frame)
    segments, tile_parts = _main_header(frame, start)
    if COD not in segments or QCD not in segments:
        raise CodestreamError("the main header has no COD or QCD")
    size, style = _SizMarker.read(segments[SIZ][1]), _Style.read(segments[COD][1])
    if style.packets(size) > MAX_PACKETS:
        raise CodestreamError(f"{style.packets(size)} packets, at most {MAX_PACKETS} are read")
    high_throughput = CAP in segments and bool(size.capabilities & 0x4000)
    planes = _bit_planes(segments[QCD][1], style.levels)
    if high_throughput and not style.reversible and planes > MAX_BIT_PLANES_OF_FAST_LOSSY:
        raise CodestreamError(f"QCD promises {planes} bit-planes, {MAX_BIT_PLANES_OF_FAST_LOSSY} are read")
    return Jpeg2000Header(
        rows=size.rows,
        columns=size.columns,
        components=size.components,
        precision=(size.depth & 0x7F) + 1,
        start=start,
        end=_end_of_tiles(frame, tile_parts, end, size.tiles),
        signed=bool(size.depth & 0x80),
        high_throughput=high_throughput,
        tiles=size.tiles,
        progression=PROGRESSIONS[style.progression],
        layers=style.layers,
        transform=bool(style.transform),
        levels=style.levels,
        reversible=style.reversible,
        tile_part_lengths=TLM in segments,
        depth_at=segments[SIZ][0] + 36,
    )
