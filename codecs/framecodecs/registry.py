"""The one table of transfer syntaxes, a row each, and what can be done with it: decode, encode, transcode.

Every call goes the same way: row -> library that is installed -> the codestream's header read by us and
compared with the dataset -> library, behind a fence -> native little-endian frame and attributes that say
what it is now. What comes out of `decode` is always native, by pixel, each pixel with all its samples.
Frames that are lossless stay exact in their stored bits; native, RLE and deflated frames in all bits.
Section of the standard: PS3.5 annex A (transfer syntaxes), 8.2 (what each may hold), PS3.18 8.7.3 (media
types).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from framecodecs.coders import jpeg, jpeg_xl
from framecodecs.errors import CodestreamError, EncodeError, Unsupported
from framecodecs.families import FAMILIES, Family
from framecodecs.frameinfo import FrameInfo
from framecodecs.headers.codestream import agree
from framecodecs.libraries import LIBRARIES, available, first_available
from framecodecs.native_syntaxes import decode_little_endian, swap_words
from framecodecs.options import EncodeOptions

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_XL_RECOMPRESSION = "1.2.840.10008.1.2.4.111"
OCTETS = "application/octet-stream"
USUAL = EncodeOptions()


@dataclass(frozen=True)
class FrameSyntax:
    """A row: `lossy` says whether encoding to it loses anything; `media_type` is that of one frame
    (PS3.18).
    """

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
        """By preference; empty: passes through, never decoded."""
        return tuple(self.family.decoders)

    @cached_property
    def encode_libraries(self) -> tuple[str, ...]:
        return tuple(self.family.encoders)

    @property
    def decode_hint(self) -> str:
        return _hint(self.decode_libraries)

    @property
    def encode_hint(self) -> str:
        return _hint(self.encode_libraries)


def _hint(libraries: tuple[str, ...]) -> str:
    """What to install if the row's library is missing."""
    return LIBRARIES[libraries[0]].hint if libraries else ""


_ROWS = (
    ("1.2.840.10008.1.2", "Implicit VR Little Endian", "little endian", OCTETS, False),
    ("1.2.840.10008.1.2.1", "Explicit VR Little Endian", "little endian", OCTETS, False),
    ("1.2.840.10008.1.2.1.99", "Deflated Explicit VR Little Endian", "little endian", OCTETS, False),
    ("1.2.840.10008.1.2.2", "Explicit VR Big Endian", "big endian", OCTETS, False),
    ("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression", "deflated frame", OCTETS, False),
    ("1.2.840.10008.1.2.5", "RLE Lossless", "rle", "image/dicom-rle", False),
    (JPEG_BASELINE, "JPEG Baseline (Process 1)", "jpeg baseline", "image/jpeg", True),
    ("1.2.840.10008.1.2.4.51", "JPEG Extended (Process 2 and 4)", "jpeg extended", "image/jpeg", True),
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
"""Changes of syntax that need no pixels, and so lose nothing."""


def syntax_of(uid: str) -> FrameSyntax:
    """The row of a transfer syntax; Unsupported if there is none."""
    try:
        return SYNTAXES[uid]
    except KeyError:
        raise Unsupported(f"transfer syntax {uid} is not known") from None


def decodable(uid: str) -> bool:
    """Whether a row exists and a library for it is installed."""
    row = SYNTAXES.get(uid)
    return row is not None and first_available(row.decode_libraries) is not None


def encodable(uid: str) -> bool:
    row = SYNTAXES.get(uid)
    return row is not None and first_available(row.encode_libraries) is not None


def transcodable(from_uid: str, to_uid: str, info: FrameInfo | None = None) -> bool:
    """Whether frames can go from one syntax to the other here; with `info`, also whether such pixels fit
    the target.
    """
    if from_uid == to_uid:
        return True
    if (from_uid, to_uid) in DIRECT:
        return first_available((jpeg_xl.LIBRARY,)) is not None
    if not (decodable(from_uid) and encodable(to_uid)):
        return False
    return info is None or _fits(info, syntax_of(to_uid))


def _fits(info: FrameInfo, row: FrameSyntax) -> bool:
    try:
        row.family.encodable.check(decoded_info(info), row.name)
    except Unsupported:
        return False
    return True


def decoded_info(info: FrameInfo) -> FrameInfo:
    """What decoding makes of a colour at the latest: a transformed one is RGB again."""
    transformed = info.photometric_interpretation in ("YBR_ICT", "YBR_RCT", "XYB")
    return info.with_colour("RGB") if transformed else info


def _installed(libraries: tuple[str, ...], row: FrameSyntax, verb: str) -> tuple[str, ...]:
    """Those of the libraries that are: one at least."""
    installed = tuple(filter(available, libraries))
    if installed:
        return installed
    if not libraries:
        raise Unsupported(f"{row.name} is passed through, it cannot be {verb}d here")
    raise Unsupported(f"no library to {verb} {row.name} is installed", _hint(libraries))


def decode(
    frame: bytes, syntax_uid: str, info: FrameInfo, *, words: bool = False, library: str | None = None
) -> tuple[bytes, FrameInfo]:
    """One frame to native: little-endian, by pixel, all samples of each.

    `words` says that big-endian pixel data was VR OW; `library` overrules the preference of the row.
    """
    if syntax_uid in LITTLE_ENDIAN:
        return decode_little_endian(frame, info)  # there is no header to be compared
    row = syntax_of(syntax_uid)
    chosen = library or _installed(row.decode_libraries, row, "decode")[0]
    if info.floating and row.encapsulated:
        raise CodestreamError(f"{row.name} never holds floating-point samples")
    if row.family_name == "big endian" and words and info.bits_allocated <= 8:
        frame = swap_words(frame)
    header = row.family.read_header(frame, info)
    agree(header, info)
    return row.family.decoders[chosen](frame, info, header)


def encode(
    frame: bytes,
    syntax_uid: str,
    info: FrameInfo,
    *,
    options: EncodeOptions | None = None,
    library: str | None = None,
) -> tuple[bytes, FrameInfo]:
    """One native little-endian frame (by pixel or by plane) to a codestream, without padding."""
    row = syntax_of(syntax_uid)
    libraries = _installed(row.encode_libraries, row, "encode")
    row.family.encodable.check(info, row.name)
    if library:
        libraries = (library,)
    for chosen in libraries[:-1]:
        try:
            return row.family.encoders[chosen](frame, info, options or USUAL)
        except EncodeError:
            continue  # some libraries refuse very small frames: the next one may not
    return row.family.encoders[libraries[-1]](frame, info, options or USUAL)


def transcode(
    frame: bytes,
    from_uid: str,
    to_uid: str,
    info: FrameInfo,
    *,
    options: EncodeOptions | None = None,
    words: bool = False,
) -> tuple[bytes, FrameInfo]:
    """One frame from one syntax to another, without touching pixels where that is possible."""
    if from_uid == to_uid:
        return frame, info
    direct = DIRECT.get((from_uid, to_uid))
    if direct is None:
        pixels, now = decode(frame, from_uid, info, words=words)
        return encode(pixels, to_uid, now, options=options)
    header = syntax_of(from_uid).family.read_header(frame, info)
    agree(header, info)
    return direct(header.codestream(frame), info)


def jpeg_is_rgb(frame: bytes, info: FrameInfo) -> bool:
    """Whether a lossy JPEG frame of three components is RGB inside, whatever the dataset calls it."""
    return jpeg.coded_colour(jpeg.lossy_header(frame, info), info) == "RGB"
