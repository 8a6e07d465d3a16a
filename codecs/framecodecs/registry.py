"""The registry of transfer syntaxes: one table, and decode, encode and transcode by its rows.

Strategy of `decode`: take the row, and the first installed library of its family. Read the header of the
codestream with a reader of this package, compare it with the dataset, and only then call the library. The
result is native: little-endian, by pixel, each pixel with all its samples, with the attributes that describe
it now. Lossless frames keep their stored bits. Native, RLE and deflated frames keep all bits.

A family is shared by the transfer syntaxes that differ only in name or loss. The table implements PS3.5
annex A (transfer syntaxes) and 8.2 (pixels that each may hold), and PS3.18 8.7.3 (media types).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from framecodecs.coders import (
    htj2k,
    jpeg,
    jpeg_2000,
    jpeg_lossless,
    jpeg_ls,
    jpeg_xl,
    native,
)
from framecodecs.errors import CodestreamError, EncodeError, Unsupported
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.codestream import agree, read_rle_header
from framecodecs.libraries import BUILT_IN, LIBRARIES, available

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_XL_RECOMPRESSION = "1.2.840.10008.1.2.4.111"
OCTETS = "application/octet-stream"
USUAL = EncodeOptions()

HeaderReader = Callable[[bytes, FrameInfo], Any]
Decoder = Callable[..., tuple[bytes, FrameInfo]]  # of the frame, its attributes and its header
Encoder = Callable[[bytes, FrameInfo, EncodeOptions], tuple[bytes, FrameInfo]]

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422"})
PALETTE = frozenset({"PALETTE COLOR"})


@dataclass(frozen=True)
class Encodable:
    """The native frames that a codestream can hold: Bits Allocated, Bits Stored, sign, colour, floats."""

    allocated: frozenset[int]
    stored: range
    signed: bool
    colours: frozenset[str]
    floating: bool = False

    def check(self, info: FrameInfo, name: str) -> None:
        """Raises Unsupported, which names the attribute that does not fit."""
        if info.floating > self.floating:
            attribute = "floating-point samples"
        elif info.bits_allocated not in self.allocated:
            attribute = f"Bits Allocated {info.bits_allocated}"
        elif info.bits_stored not in self.stored:
            attribute = f"Bits Stored {info.bits_stored}"
        elif info.pixel_representation > self.signed:
            attribute = "signed samples"
        elif info.photometric_interpretation not in self.colours:
            attribute = info.photometric_interpretation
        else:
            return
        raise Unsupported(f"{name} cannot hold {attribute}")


ANYTHING = Encodable(frozenset({1, 8, 16, 32, 64}), range(1, 65), True, GREY | COLOUR | PALETTE, True)
BYTES = Encodable(frozenset({8, 16, 32, 64}), range(1, 65), True, GREY | COLOUR | PALETTE)
LOSSLESS_2_16 = Encodable(frozenset({8, 16}), range(2, 17), True, GREY | COLOUR | PALETTE)
LOSSLESS_1_16 = Encodable(frozenset({1, 8, 16}), range(1, 17), True, GREY | COLOUR | PALETTE)
LOSSY_SIGNED = Encodable(frozenset({8, 16}), range(2, 17), True, GREY | COLOUR)
LOSSY_UNSIGNED = Encodable(frozenset({8, 16}), range(2, 17), False, GREY | COLOUR)
JPEG_8 = Encodable(frozenset({8}), range(8, 9), False, GREY | COLOUR)
JPEG_12 = Encodable(frozenset({8, 16}), range(8, 13), False, GREY | COLOUR)
XL_LOSSLESS = Encodable(frozenset({8, 16}), range(1, 17), False, GREY | PALETTE | {"RGB"})
XL_LOSSY = Encodable(frozenset({8, 16}), range(8, 17), False, GREY | {"RGB"})


@dataclass(frozen=True)
class Family:
    """Decoders and encoders by library, the preferred one first. A family without a decoder passes through.
    `parallel` is the library whose decoder takes a number of `cores`."""

    read_header: HeaderReader
    decoders: dict[str, Decoder] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)
    encodable: Encodable = ANYTHING
    parallel: str = ""


IC, OPENJPEG, PYJPEGLS, RLE = "imagecodecs", "pylibjpeg-openjpeg", "pyjpegls", "pylibjpeg-rle"
_J2K: dict[str, Decoder] = {IC: jpeg_2000.decode, OPENJPEG: jpeg_2000.decode_by_openjpeg}
_HTJ2K: dict[str, Decoder] = {IC: htj2k.decode, OPENJPEG: jpeg_2000.decode_by_openjpeg}
_JPEG_LS: dict[str, Decoder] = {IC: jpeg_ls.decode, PYJPEGLS: jpeg_ls.decode_by_pyjpegls}
_JPEG: dict[str, Decoder] = {IC: jpeg.decode_lossy}
_JPEG_XL: dict[str, Decoder] = {IC: jpeg_xl.decode}

FAMILIES = {
    "little endian": Family(
        native.whole_header,
        {BUILT_IN: native.decode_little_endian},
        {BUILT_IN: native.encode_little_endian},
    ),
    "big endian": Family(native.whole_header, {BUILT_IN: native.decode_big_endian}),
    "deflated frame": Family(
        native.whole_header, {BUILT_IN: native.decode_deflated}, {BUILT_IN: native.encode_deflated}
    ),
    "rle": Family(read_rle_header, {RLE: native.decode_rle}, {RLE: native.encode_rle}, BYTES),
    "jpeg baseline": Family(jpeg.lossy_header, _JPEG, {IC: jpeg.encode_lossy}, JPEG_8),
    "jpeg extended": Family(jpeg.lossy_header, _JPEG, {IC: jpeg.encode_lossy}, JPEG_12),
    "jpeg progressive": Family(jpeg.lossy_header, _JPEG),
    "jpeg lossless": Family(
        jpeg.lossless_header,
        {IC: jpeg.decode_lossless},
        {BUILT_IN: jpeg_lossless.encode, IC: jpeg.encode_lossless},
        LOSSLESS_2_16,
    ),
    "jpeg-ls": Family(
        jpeg_ls.header_of,
        _JPEG_LS,
        {PYJPEGLS: jpeg_ls.encode_lossless, IC: jpeg_ls.encode_in_whole_bytes},
        LOSSLESS_2_16,
    ),
    "jpeg-ls near": Family(
        jpeg_ls.header_of,
        _JPEG_LS,
        {PYJPEGLS: jpeg_ls.encode_near_lossless, IC: jpeg_ls.encode_in_whole_bytes},
        LOSSY_UNSIGNED,
    ),
    "jpeg 2000": Family(
        jpeg_2000.header_of,
        _J2K,
        {IC: jpeg_2000.encode, OPENJPEG: jpeg_2000.encode_by_openjpeg},
        LOSSLESS_1_16,
        parallel=IC,
    ),
    "jpeg 2000 lossy": Family(
        jpeg_2000.header_of,
        _J2K,
        {
            IC: partial(jpeg_2000.encode, reversible=False),
            OPENJPEG: partial(jpeg_2000.encode_by_openjpeg, reversible=False),
        },
        LOSSY_SIGNED,
        parallel=IC,
    ),
    "htj2k": Family(htj2k.header_of, _HTJ2K, {IC: htj2k.encode}, LOSSLESS_1_16),
    "htj2k lossy": Family(
        htj2k.header_of, _HTJ2K, {IC: partial(htj2k.encode, reversible=False)}, LOSSY_SIGNED
    ),
    "jpeg xl": Family(jpeg_xl.header_of, _JPEG_XL, {IC: jpeg_xl.encode}, XL_LOSSLESS),
    "jpeg xl recompression": Family(jpeg_xl.header_of, _JPEG_XL),
    "jpeg xl lossy": Family(
        jpeg_xl.header_of, _JPEG_XL, {IC: partial(jpeg_xl.encode, lossless=False)}, XL_LOSSY
    ),
    "video": Family(native.whole_header),
}


@dataclass(frozen=True)
class FrameSyntax:
    """A row. `lossy` says whether encoding loses pixels. `media_type` is that of one frame (PS3.18)."""

    uid: str
    name: str
    family_name: str
    media_type: str
    lossy: bool = False

    @cached_property
    def family(self) -> Family:
        return FAMILIES[self.family_name]

    @property
    def encapsulated(self) -> bool:
        return self.family_name not in ("little endian", "big endian")

    @cached_property
    def decode_libraries(self) -> tuple[str, ...]:
        """The preferred one first. Empty: frames pass through and are never decoded."""
        return tuple(self.family.decoders)

    @cached_property
    def encode_libraries(self) -> tuple[str, ...]:
        return tuple(self.family.encoders)


_ROWS = (
    ("1.2.840.10008.1.2", "Implicit VR Little Endian", "little endian", OCTETS, False),
    ("1.2.840.10008.1.2.1", "Explicit VR Little Endian", "little endian", OCTETS, False),
    ("1.2.840.10008.1.2.1.99", "Deflated Explicit VR Little Endian", "little endian", OCTETS, False),
    ("1.2.840.10008.1.2.2", "Explicit VR Big Endian", "big endian", OCTETS, False),
    ("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression", "deflated frame", OCTETS, False),
    ("1.2.840.10008.1.2.5", "RLE Lossless", "rle", "image/dicom-rle", False),
    (JPEG_BASELINE, "JPEG Baseline (Process 1)", "jpeg baseline", "image/jpeg", True),
    ("1.2.840.10008.1.2.4.51", "JPEG Extended (Process 2 and 4)", "jpeg extended", "image/jpeg", True),
    ("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection (6 and 8)", "jpeg progressive", "image/jpeg", True),
    ("1.2.840.10008.1.2.4.55", "JPEG Full Progression (10 and 12)", "jpeg progressive", "image/jpeg", True),
    ("1.2.840.10008.1.2.4.57", "JPEG Lossless (Process 14)", "jpeg lossless", "image/jpeg", False),
    ("1.2.840.10008.1.2.4.70", "JPEG Lossless (Process 14, SV1)", "jpeg lossless", "image/jpeg", False),
    ("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless", "jpeg-ls", "image/jls", False),
    ("1.2.840.10008.1.2.4.81", "JPEG-LS Near-Lossless", "jpeg-ls near", "image/jls", True),
    ("1.2.840.10008.1.2.4.90", "JPEG 2000 Lossless", "jpeg 2000", "image/jp2", False),
    ("1.2.840.10008.1.2.4.91", "JPEG 2000", "jpeg 2000 lossy", "image/jp2", True),
    ("1.2.840.10008.1.2.4.201", "HTJ2K Lossless", "htj2k", "image/jphc", False),
    ("1.2.840.10008.1.2.4.202", "HTJ2K Lossless RPCL", "htj2k", "image/jphc", False),
    ("1.2.840.10008.1.2.4.203", "HTJ2K", "htj2k lossy", "image/jphc", True),
    ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless", "jpeg xl", "image/jxl", False),
    (JPEG_XL_RECOMPRESSION, "JPEG XL JPEG Recompression", "jpeg xl recompression", "image/jxl", True),
    ("1.2.840.10008.1.2.4.112", "JPEG XL", "jpeg xl lossy", "image/jxl", True),
    ("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level", "video", "video/mpeg2", True),
    ("1.2.840.10008.1.2.4.100.1", "Fragmentable MPEG2 Main / Main", "video", "video/mpeg2", True),
    ("1.2.840.10008.1.2.4.101", "MPEG2 Main Profile / High Level", "video", "video/mpeg2", True),
    ("1.2.840.10008.1.2.4.101.1", "Fragmentable MPEG2 Main / High", "video", "video/mpeg2", True),
    ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High 4.1", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.102.1", "Fragmentable MPEG-4 AVC/H.264 High 4.1", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.103", "MPEG-4 AVC/H.264 BD-compatible", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.104", "MPEG-4 AVC/H.264 High 4.2 2D", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.104.1", "Fragmentable MPEG-4 AVC/H.264 4.2 2D", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.105", "MPEG-4 AVC/H.264 High 4.2 3D", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.105.1", "Fragmentable MPEG-4 AVC/H.264 4.2 3D", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.106", "MPEG-4 AVC/H.264 Stereo High 4.2", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo", "video", "video/mp4", True),
    ("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main 5.1", "video", "video/H265", True),
    ("1.2.840.10008.1.2.4.108", "HEVC/H.265 Main 10 5.1", "video", "video/H265", True),
)
SYNTAXES: dict[str, FrameSyntax] = {row[0]: FrameSyntax(*row) for row in _ROWS}
LITTLE_ENDIAN = frozenset(uid for uid, row in SYNTAXES.items() if row.family_name == "little endian")

Direct = Callable[[bytes, FrameInfo], tuple[bytes, FrameInfo]]
DIRECT: dict[tuple[str, str], Direct] = {
    (JPEG_BASELINE, JPEG_XL_RECOMPRESSION): jpeg_xl.recompress,
    (JPEG_XL_RECOMPRESSION, JPEG_BASELINE): jpeg_xl.restore,
}
"""Changes of syntax that do not touch pixels, and so lose nothing."""


def syntax_of(uid: str) -> FrameSyntax:
    """Returns the row of a transfer syntax. Raises Unsupported if there is none."""
    try:
        return SYNTAXES[uid]
    except KeyError:
        raise Unsupported(f"transfer syntax {uid} is not known") from None


def decodable(uid: str) -> bool:
    """Returns whether the registry has a row, and a library for it is installed."""
    row = SYNTAXES.get(uid)
    return row is not None and any(map(available, row.decode_libraries))


def encodable(uid: str) -> bool:
    row = SYNTAXES.get(uid)
    return row is not None and any(map(available, row.encode_libraries))


def transcodable(from_uid: str, to_uid: str, info: FrameInfo | None = None) -> bool:
    """Returns whether frames can change from one syntax to the other; with `info`, also whether such pixels
    fit into the target."""
    if from_uid == to_uid:
        return True
    if (from_uid, to_uid) in DIRECT:
        return available(IC)
    if not (decodable(from_uid) and encodable(to_uid)):
        return False
    if info is None:
        return True
    row = syntax_of(to_uid)
    transformed = info.photometric_interpretation in ("YBR_ICT", "YBR_RCT", "XYB")
    try:
        row.family.encodable.check(info.with_colour("RGB") if transformed else info, row.name)
    except Unsupported:
        return False
    return True


def _installed(libraries: tuple[str, ...], row: FrameSyntax, verb: str) -> tuple[str, ...]:
    """Returns the installed ones. Raises Unsupported if there is none."""
    installed = tuple(filter(available, libraries))
    if installed:
        return installed
    if not libraries:
        raise Unsupported(f"{row.name} is passed through, it cannot be {verb}d here")
    raise Unsupported(f"no library to {verb} {row.name} is installed", LIBRARIES[libraries[0]].hint)


def decode(
    frame: bytes,
    syntax_uid: str,
    info: FrameInfo,
    *,
    words: bool = False,
    library: str | None = None,
    cores: int = 1,
) -> tuple[bytes, FrameInfo]:
    """Returns the native frame. `words` says that big-endian pixel data has VR OW. `library` replaces the
    preferred one. `cores` is the number of cores that the library may use."""
    if syntax_uid in LITTLE_ENDIAN:
        return native.decode_little_endian(frame, info)  # there is no header to compare
    row = syntax_of(syntax_uid)
    family = row.family
    chosen = library or _installed(row.decode_libraries, row, "decode")[0]
    if info.floating and row.encapsulated:
        raise CodestreamError(f"{row.name} never holds floating-point samples")
    if row.family_name == "big endian" and words and info.bits_allocated <= 8:
        frame = native.swap_words(frame)
    header = family.read_header(frame, info)
    agree(header, info)
    if chosen == family.parallel:
        return family.decoders[chosen](frame, info, header, cores)
    return family.decoders[chosen](frame, info, header)


def encode(
    frame: bytes,
    syntax_uid: str,
    info: FrameInfo,
    *,
    options: EncodeOptions | None = None,
    library: str | None = None,
    cores: int = 1,
) -> tuple[bytes, FrameInfo]:
    """Returns the codestream, without padding, of one native frame (by pixel or by plane)."""
    row = syntax_of(syntax_uid)
    libraries = _installed(row.encode_libraries, row, "encode")
    row.family.encodable.check(info, row.name)
    options = options or USUAL
    if cores != options.cores:
        options = replace(options, cores=cores)
    if library:
        libraries = (library,)
    for chosen in libraries[:-1]:
        try:
            return row.family.encoders[chosen](frame, info, options)
        except EncodeError:
            continue  # some libraries refuse very small frames: the next one may not
    return row.family.encoders[libraries[-1]](frame, info, options)


def transcode(
    frame: bytes,
    from_uid: str,
    to_uid: str,
    info: FrameInfo,
    *,
    options: EncodeOptions | None = None,
    words: bool = False,
    cores: int = 1,
) -> tuple[bytes, FrameInfo]:
    """Returns the frame in another syntax, without touching pixels where that is possible."""
    if from_uid == to_uid:
        return frame, info
    direct = DIRECT.get((from_uid, to_uid))
    if direct is None:
        pixels, now = decode(frame, from_uid, info, words=words, cores=cores)
        return encode(pixels, to_uid, now, options=options, cores=cores)
    header = syntax_of(from_uid).family.read_header(frame, info)
    agree(header, info)
    return direct(header.codestream(frame), info)
