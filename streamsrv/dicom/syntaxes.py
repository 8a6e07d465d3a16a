"""The table of transfer syntaxes (PS3.5 section 10 and Annex A, PS3.6 Annex A; media types PS3.18 Tables
8.7.3-4 and -5).

An unknown or private UID is no error: by PS3.5 A.4 all but two syntaxes are explicit VR little endian, and
the undefined length of Pixel Data shows that they are encapsulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class TransferSyntax(NamedTuple):
    """`deflated`: the dataset is one deflate stream. `lossy`: the pixels may differ from the acquired
    ones."""

    uid: str
    name: str
    explicit_vr: bool = True
    little_endian: bool = True
    deflated: bool = False
    encapsulated: bool = True
    media_type: str = "application/octet-stream"
    lossy: bool = False


IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"


def _native(
    uid: str, name: str, *, explicit: bool = True, little: bool = True, deflated: bool = False
) -> TransferSyntax:
    return TransferSyntax(uid, name, explicit, little, deflated, encapsulated=False)


def _pixels(suffix: str, name: str, media_type: str, lossy: bool) -> TransferSyntax:
    return TransferSyntax(f"1.2.840.10008.1.2.{suffix}", name, media_type=media_type, lossy=lossy)


def _videos(suffix: str, name: str, media_type: str) -> Iterator[TransferSyntax]:
    """The syntax, and its variant that may have several fragments."""
    yield _pixels(suffix, name, media_type, True)
    yield _pixels(f"{suffix}.1", f"Fragmentable {name}", media_type, True)


_ROWS = (
    _native(IMPLICIT_VR_LITTLE_ENDIAN, "Implicit VR Little Endian", explicit=False),
    _native(EXPLICIT_VR_LITTLE_ENDIAN, "Explicit VR Little Endian"),
    _native(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "Deflated Explicit VR Little Endian", deflated=True),
    _native(EXPLICIT_VR_BIG_ENDIAN, "Explicit VR Big Endian", little=False),
    _native("1.2.840.10008.1.2.4.94", "JPIP Referenced"),
    _native("1.2.840.10008.1.2.4.95", "JPIP Referenced Deflate", deflated=True),
    _native("1.2.840.10008.1.2.4.204", "JPIP HTJ2K Referenced"),
    _native("1.2.840.10008.1.2.4.205", "JPIP HTJ2K Referenced Deflate", deflated=True),
    _pixels("1.98", "Encapsulated Uncompressed Explicit VR Little Endian", "application/octet-stream", False),
    _pixels("4.50", "JPEG Baseline (Process 1)", "image/jpeg", True),
    _pixels("4.51", "JPEG Extended (Processes 2 and 4)", "image/jpeg", True),
    _pixels("4.52", "JPEG Extended (Processes 3 and 5)", "image/jpeg", True),
    _pixels("4.53", "JPEG Spectral Selection (Processes 6 and 8)", "image/jpeg", True),
    _pixels("4.54", "JPEG Spectral Selection (Processes 7 and 9)", "image/jpeg", True),
    _pixels("4.55", "JPEG Full Progression (Processes 10 and 12)", "image/jpeg", True),
    _pixels("4.56", "JPEG Full Progression (Processes 11 and 13)", "image/jpeg", True),
    _pixels("4.57", "JPEG Lossless (Process 14)", "image/jpeg", False),
    _pixels("4.58", "JPEG Lossless (Process 15)", "image/jpeg", False),
    _pixels("4.70", "JPEG Lossless (Process 14, Selection Value 1)", "image/jpeg", False),
    _pixels("4.80", "JPEG-LS Lossless", "image/jls", False),
    _pixels("4.81", "JPEG-LS Near-Lossless", "image/jls", True),
    _pixels("4.90", "JPEG 2000 Lossless", "image/jp2", False),
    _pixels("4.91", "JPEG 2000", "image/jp2", True),
    _pixels("4.92", "JPEG 2000 Part 2 Multi-component Lossless", "image/jpx", False),
    _pixels("4.93", "JPEG 2000 Part 2 Multi-component", "image/jpx", True),
    *_videos("4.100", "MPEG2 Main Profile / Main Level", "video/mpeg2"),
    *_videos("4.101", "MPEG2 Main Profile / High Level", "video/mpeg2"),
    *_videos("4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", "video/mp4"),
    *_videos("4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", "video/mp4"),
    *_videos("4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 for 2D Video", "video/mp4"),
    *_videos("4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 for 3D Video", "video/mp4"),
    *_videos("4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", "video/mp4"),
    _pixels("4.107", "HEVC/H.265 Main Profile / Level 5.1", "video/H265", True),
    _pixels("4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", "video/H265", True),
    _pixels("4.110", "JPEG XL Lossless", "image/jxl", False),
    _pixels("4.111", "JPEG XL JPEG Recompression", "image/jxl", True),
    _pixels("4.112", "JPEG XL", "image/jxl", True),
    _pixels("4.201", "High-Throughput JPEG 2000 Lossless", "image/jphc", False),
    _pixels("4.202", "High-Throughput JPEG 2000 with RPCL Options Lossless", "image/jphc", False),
    _pixels("4.203", "High-Throughput JPEG 2000", "image/jphc", True),
    _pixels("5", "RLE Lossless", "image/dicom-rle", False),
    _pixels("8.1", "Deflated Image Frame Compression", "application/octet-stream", False),
)

SYNTAXES: dict[str, TransferSyntax] = {row.uid: row for row in _ROWS}


def lookup(uid: str) -> TransferSyntax:
    """The row of `uid`; for an unknown or private UID a row by PS3.5 A.4."""
    return SYNTAXES.get(uid) or TransferSyntax(uid, "Unknown")
