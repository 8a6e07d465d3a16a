"""Codec families: who reads the header, which library decodes or encodes, in order of preference, and which
pixels may go in.

A family is shared by the transfer syntaxes that differ only in name or loss. `Encodable` is PS3.5 8.2 as
data: what pixels a codestream of that kind can hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from framecodecs import native_syntaxes
from framecodecs.coders import htj2k, jpeg, jpeg_2000, jpeg_lossless, jpeg_ls, jpeg_xl, rle_lossless
from framecodecs.errors import Unsupported
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import BUILT_IN
from framecodecs.options import EncodeOptions

HeaderReader = Callable[[bytes, FrameInfo], Any]
Decoder = Callable[[bytes, FrameInfo, Any], tuple[bytes, FrameInfo]]
Encoder = Callable[[bytes, FrameInfo, EncodeOptions], tuple[bytes, FrameInfo]]

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422"})
PALETTE = frozenset({"PALETTE COLOR"})


@dataclass(frozen=True)
class Encodable:
    """Which native frames may be encoded: by Bits Allocated, Bits Stored, sign and colour."""

    allocated: frozenset[int]
    stored: range
    signed: bool
    colours: frozenset[str]
    floating: bool = False

    def check(self, info: FrameInfo, name: str) -> None:
        """Unsupported, saying which attribute stands in the way."""
        if info.floating > self.floating:
            what = "floating-point samples"
        elif info.bits_allocated not in self.allocated:
            what = f"Bits Allocated {info.bits_allocated}"
        elif info.bits_stored not in self.stored:
            what = f"Bits Stored {info.bits_stored}"
        elif info.pixel_representation > self.signed:
            what = "signed samples"
        elif info.photometric_interpretation not in self.colours:
            what = info.photometric_interpretation
        else:
            return
        raise Unsupported(f"{name} cannot hold {what}")


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
    """Libraries by preference (a dict keeps its order); an empty one means that it cannot be done here."""

    read_header: HeaderReader
    decoders: dict[str, Decoder] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)
    encodable: Encodable = ANYTHING


J2K_DECODERS: dict[str, Decoder] = {
    "imagecodecs": jpeg_2000.decode,
    "pylibjpeg-openjpeg": jpeg_2000.decode_by_openjpeg,
}
HTJ2K_DECODERS: dict[str, Decoder] = {
    "imagecodecs": htj2k.decode,
    "pylibjpeg-openjpeg": jpeg_2000.decode_by_openjpeg,
}
JPEG_LS_DECODERS: dict[str, Decoder] = {
    "imagecodecs": jpeg_ls.decode,
    "pyjpegls": jpeg_ls.decode_by_pyjpegls,
}
XL_DECODERS: dict[str, Decoder] = {"imagecodecs": jpeg_xl.decode}

FAMILIES = {
    "little endian": Family(
        native_syntaxes.whole_header,
        {BUILT_IN: native_syntaxes.decode_little_endian},
        {BUILT_IN: native_syntaxes.encode_little_endian},
    ),
    "big endian": Family(native_syntaxes.whole_header, {BUILT_IN: native_syntaxes.decode_big_endian}),
    "deflated frame": Family(
        native_syntaxes.whole_header,
        {BUILT_IN: native_syntaxes.decode_deflated},
        {BUILT_IN: native_syntaxes.encode_deflated},
    ),
    "rle": Family(
        rle_lossless.header_of,
        {rle_lossless.LIBRARY: rle_lossless.decode},
        {rle_lossless.LIBRARY: rle_lossless.encode},
        BYTES,
    ),
    "jpeg baseline": Family(
        jpeg.lossy_header, {jpeg.LIBRARY: jpeg.decode_lossy}, {jpeg.LIBRARY: jpeg.encode_lossy}, JPEG_8
    ),
    "jpeg extended": Family(
        jpeg.lossy_header, {jpeg.LIBRARY: jpeg.decode_lossy}, {jpeg.LIBRARY: jpeg.encode_lossy}, JPEG_12
    ),
    "jpeg lossless": Family(
        jpeg.lossless_header,
        {jpeg.LIBRARY: jpeg.decode_lossless},
        {BUILT_IN: jpeg_lossless.encode, jpeg.LIBRARY: jpeg.encode_lossless},
        LOSSLESS_2_16,
    ),
    "jpeg-ls": Family(
        jpeg_ls.header_of,
        JPEG_LS_DECODERS,
        {"pyjpegls": jpeg_ls.encode_lossless, "imagecodecs": jpeg_ls.encode_in_whole_bytes},
        LOSSLESS_2_16,
    ),
    "jpeg-ls near": Family(
        jpeg_ls.header_of,
        JPEG_LS_DECODERS,
        {"pyjpegls": jpeg_ls.encode_near_lossless, "imagecodecs": jpeg_ls.encode_in_whole_bytes},
        LOSSY_UNSIGNED,
    ),
    "jpeg 2000": Family(
        jpeg_2000.header_of,
        J2K_DECODERS,
        {
            "imagecodecs": jpeg_2000.encode_lossless,
            "pylibjpeg-openjpeg": jpeg_2000.encode_lossless_by_openjpeg,
        },
        LOSSLESS_1_16,
    ),
    "jpeg 2000 lossy": Family(
        jpeg_2000.header_of,
        J2K_DECODERS,
        {"imagecodecs": jpeg_2000.encode_lossy, "pylibjpeg-openjpeg": jpeg_2000.encode_lossy_by_openjpeg},
        LOSSY_SIGNED,
    ),
    "htj2k": Family(htj2k.header_of, HTJ2K_DECODERS, {htj2k.LIBRARY: htj2k.encode_lossless}, LOSSLESS_1_16),
    "htj2k lossy": Family(htj2k.header_of, HTJ2K_DECODERS, {htj2k.LIBRARY: htj2k.encode_lossy}, LOSSY_SIGNED),
    "jpeg xl": Family(
        jpeg_xl.header_of, XL_DECODERS, {jpeg_xl.LIBRARY: jpeg_xl.encode_lossless}, XL_LOSSLESS
    ),
    "jpeg xl recompression": Family(jpeg_xl.header_of, XL_DECODERS),
    "jpeg xl lossy": Family(
        jpeg_xl.header_of, XL_DECODERS, {jpeg_xl.LIBRARY: jpeg_xl.encode_lossy}, XL_LOSSY
    ),
    "video": Family(native_syntaxes.whole_header),
}
