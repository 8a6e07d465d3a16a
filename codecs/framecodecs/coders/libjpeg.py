"""JPEG of 12 bits, one sample a pixel, by the C interface of the libjpeg-turbo in imagecodecs' wheels.

imagecodecs itself offers one way to encode such a frame: the integer transform, which goes value by value for
12 bits, and a pass over the whole frame to find the Huffman tables before the one that writes it. Here the
transform is that of floating point, which is faster and nearer to the exact one, and the tables are found in
every eighth row of blocks: a third of the time, and some tenths of a percent more bytes. A frame that is
small, or becomes so, or turns out to be unlike its sample is read whole to find them.

Where the library is not found (imagecodecs built otherwise, another interface), or the frame is not for it,
`encode` gives None, and imagecodecs does the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from framecodecs.headers.huffman import AC_SYMBOLS, DC_SYMBOLS, HuffmanTable, completed
from framecodecs.libraries import carried
from framecodecs.samples import Samples

VERSION = 80  # JPEG_LIB_VERSION: the interface of libjpeg 8
PRECISION = 12
GRAYSCALE = 1  # JCS_GRAYSCALE
FLOATING_POINT = 2  # JDCT_FLOAT
BASELINE_DIVISORS = 1  # no more than 8 bits each, as imagecodecs asks for
LONGEST_SIDE = 65_500  # JPEG_MAX_DIMENSION
LARGEST = 2**26  # pixels; beyond it, running out of memory has to be told in words
BLOCK = 8
SAMPLE = 8  # one row of blocks in so many
SMALL = 1024  # blocks: of fewer a sample says little
LITTLE = 20_000  # bytes: of fewer, codes for all symbols there might be are too large a part
UNLIKE = 1.5  # times the bytes that the sample promised
# 64 codes of 16 bits with up to 15 bits behind each, a byte stuffed behind each: no block takes more bytes.
ROOM = 512
BESIDES = 4096  # bytes of markers
UNKNOWN_SIZE = 4096  # bytes for a structure that may be larger than ours

Rows = NDArray[np.uintp]


class _HuffmanTable(ctypes.Structure):
    """JHUFF_TBL"""

    _fields_ = (
        ("bits", ctypes.c_uint8 * 17),
        ("huffval", ctypes.c_uint8 * 256),
        ("sent_table", ctypes.c_int),
    )


class _Compressor(ctypes.Structure):
    """jpeg_compress_struct of libjpeg 8, field by field."""

    _fields_ = (
        ("err", ctypes.c_void_p),
        ("mem", ctypes.c_void_p),
        ("progress", ctypes.c_void_p),
        ("client_data", ctypes.c_void_p),
        ("is_decompressor", ctypes.c_int),
        ("global_state", ctypes.c_int),
        ("dest", ctypes.c_void_p),
        ("image_width", ctypes.c_uint),
        ("image_height", ctypes.c_uint),
        ("input_components", ctypes.c_int),
        ("in_color_space", ctypes.c_int),
        ("input_gamma", ctypes.c_double),
        ("scale_num", ctypes.c_uint),
        ("scale_denom", ctypes.c_uint),
        ("jpeg_width", ctypes.c_uint),
        ("jpeg_height", ctypes.c_uint),
        ("data_precision", ctypes.c_int),
        ("num_components", ctypes.c_int),
        ("jpeg_color_space", ctypes.c_int),
        ("comp_info", ctypes.c_void_p),
        ("quant_tbl_ptrs", ctypes.c_void_p * 4),
        ("q_scale_factor", ctypes.c_int * 4),
        ("dc_huff_tbl_ptrs", ctypes.POINTER(_HuffmanTable) * 4),
        ("ac_huff_tbl_ptrs", ctypes.POINTER(_HuffmanTable) * 4),
        ("arith_dc_L", ctypes.c_uint8 * 16),
        ("arith_dc_U", ctypes.c_uint8 * 16),
        ("arith_ac_K", ctypes.c_uint8 * 16),
        ("num_scans", ctypes.c_int),
        ("scan_info", ctypes.c_void_p),
        ("raw_data_in", ctypes.c_int),
        ("arith_code", ctypes.c_int),
        ("optimize_coding", ctypes.c_int),
        ("CCIR601_sampling", ctypes.c_int),
        ("do_fancy_downsampling", ctypes.c_int),
        ("smoothing_factor", ctypes.c_int),
        ("dct_method", ctypes.c_int),
        ("restart_interval", ctypes.c_uint),
        ("restart_in_rows", ctypes.c_int),
        ("write_JFIF_header", ctypes.c_int),
        ("JFIF_major_version", ctypes.c_uint8),
        ("JFIF_minor_version", ctypes.c_uint8),
        ("density_unit", ctypes.c_uint8),
        ("X_density", ctypes.c_uint16),
        ("Y_density", ctypes.c_uint16),
        ("write_Adobe_marker", ctypes.c_int),
        ("next_scanline", ctypes.c_uint),
        ("progressive_mode", ctypes.c_int),
        ("max_h_samp_factor", ctypes.c_int),
        ("max_v_samp_factor", ctypes.c_int),
        ("min_DCT_h_scaled_size", ctypes.c_int),
        ("min_DCT_v_scaled_size", ctypes.c_int),
        ("total_iMCU_rows", ctypes.c_uint),
        ("comps_in_scan", ctypes.c_int),
        ("cur_comp_info", ctypes.c_void_p * 4),
        ("MCUs_per_row", ctypes.c_uint),
        ("MCU_rows_in_scan", ctypes.c_uint),
        ("blocks_in_MCU", ctypes.c_int),
        ("MCU_membership", ctypes.c_int * 10),
        ("Ss", ctypes.c_int),
        ("Se", ctypes.c_int),
        ("Ah", ctypes.c_int),
        ("Al", ctypes.c_int),
        ("block_size", ctypes.c_int),
        ("natural_order", ctypes.c_void_p),
        ("lim_Se", ctypes.c_int),
        ("modules", ctypes.c_void_p * 9),
        ("script_space", ctypes.c_void_p),
        ("script_space_size", ctypes.c_int),
    )


_Complaint = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # error_exit, the first field of jpeg_error_mgr


@cache
def _library() -> ctypes.CDLL | None:
    for found in carried("imagecodecs", "libjpeg*.so*"):
        try:
            found.jpeg_std_error.restype = ctypes.c_void_p
            found.jpeg12_write_scanlines.restype = ctypes.c_uint
            if _is_as_described(found):
                return found
        except AttributeError:  # of libjpegxr, and of a libjpeg that knows 8 bits only
            continue
    return None


def _is_as_described(library: ctypes.CDLL) -> bool:
    """Whether its interface and the size of its structure are those that are described here.

    It complains of others through error_exit, and is the only caller that goes on safely if that returns.
    """
    complaints: list[int] = []
    complaint = _Complaint(complaints.append)
    error, compressor = (ctypes.create_string_buffer(UNKNOWN_SIZE) for _ in range(2))
    library.jpeg_std_error(error)
    ctypes.c_void_p.from_buffer(error).value = ctypes.cast(complaint, ctypes.c_void_p).value
    ctypes.c_void_p.from_buffer(compressor).value = ctypes.addressof(error)
    size = ctypes.c_size_t(ctypes.sizeof(_Compressor))
    library.jpeg_CreateCompress(compressor, ctypes.c_int(VERSION), size)
    library.jpeg_destroy_compress(compressor)
    return not complaints


@cache
def _abort() -> int | None:
    """Where it is in the C library."""
    return ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value


def encode(values: Samples, quality: int) -> bytes | None:
    """`values` are rows of numbers below 4,096. None if the library is not there, or not for such a frame."""
    library = _library()
    if library is None or not _is_for_it(values):
        return None
    values = np.ascontiguousarray(values)
    rows = values.ctypes.data + np.arange(len(values), dtype=np.uintp) * np.uintp(values.strides[0])
    sample = _sample(rows, values.shape[1])
    with _Encoder(library, values.shape, quality) as encoder:
        if sample.size:
            promised = encoder.write(sample, optimize=True) * rows.size / sample.size
            encoder.complete_tables()
            if promised > LITTLE and encoder.write(rows, optimize=False) <= UNLIKE * promised:
                return encoder.written()
        encoder.write(rows, optimize=True)
        return encoder.written()


def _is_for_it(values: Samples) -> bool:
    """Whatever libjpeg would complain of is left to imagecodecs: here it would end the process."""
    return (
        values.ndim == 2
        and values.dtype == np.uint16
        and all(0 < side <= LONGEST_SIDE for side in values.shape)
        and values.size <= LARGEST
    )


def _sample(rows: Rows, columns: int) -> Rows:
    """Some rows of blocks; nothing if the frame has so few that all of them had better be looked at."""
    whole = rows[: rows.size // BLOCK * BLOCK].reshape(-1, BLOCK)
    if len(whole) < SAMPLE or len(whole) * -(-columns // BLOCK) < SMALL:
        return rows[:0]
    return whole[SAMPLE // 2 :: SAMPLE].reshape(-1)


class _Encoder:
    """A compressor of libjpeg with its destination.

    An error ends the process at once, because libjpeg does not expect error_exit to return: frames are
    encoded by processes that all others survive.
    """

    def __init__(self, library: ctypes.CDLL, shape: Sequence[int], quality: int) -> None:
        self._library = library
        self._error = ctypes.create_string_buffer(UNKNOWN_SIZE)
        library.jpeg_std_error(self._error)
        ctypes.c_void_p.from_buffer(self._error).value = _abort()
        blocks = prod(-(-side // BLOCK) for side in shape)
        self._room = np.empty(ROOM * blocks + BESIDES, np.uint8)  # pages that are not written to cost nothing
        np.empty(BLOCK * BLOCK * blocks + BESIDES, np.uint16)  # MemoryError sooner than libjpeg's error_exit
        self._length = ctypes.c_ulong()
        self._fields = _Compressor(err=ctypes.addressof(self._error))
        self._compressor = ctypes.byref(self._fields)
        library.jpeg_CreateCompress(self._compressor, VERSION, ctypes.c_size_t(ctypes.sizeof(_Compressor)))
        self._fields.image_width = shape[1]
        self._fields.input_components = 1
        self._fields.in_color_space = GRAYSCALE
        self._fields.data_precision = PRECISION
        library.jpeg_set_defaults(self._compressor)
        library.jpeg_set_quality(self._compressor, quality, BASELINE_DIVISORS)
        self._fields.dct_method = FLOATING_POINT

    def __enter__(self) -> _Encoder:
        return self

    def __exit__(self, *unused: object) -> None:
        self._library.jpeg_destroy_compress(self._compressor)

    def write(self, rows: Rows, *, optimize: bool) -> int:
        """A JPEG of the rows (addresses), with the best tables or those that are there; gives its length."""
        library, compressor = self._library, self._compressor
        start = ctypes.c_void_p(self._room.ctypes.data)
        self._length.value = self._room.size
        self._fields.image_height = rows.size
        self._fields.optimize_coding = optimize
        library.jpeg_mem_dest(compressor, ctypes.byref(start), ctypes.byref(self._length))
        library.jpeg_start_compress(compressor, 1)
        library.jpeg12_write_scanlines(compressor, ctypes.c_void_p(rows.ctypes.data), rows.size)
        library.jpeg_finish_compress(compressor)
        return self._length.value

    def written(self) -> bytes:
        return self._room[: self._length.value].tobytes()

    def complete_tables(self) -> None:
        """Gives every symbol a code: for one without, libjpeg's vector code would write nothing, unsaid."""
        for found, symbols in (
            (self._fields.dc_huff_tbl_ptrs[0].contents, DC_SYMBOLS),
            (self._fields.ac_huff_tbl_ptrs[0].contents, AC_SYMBOLS),
        ):
            counts = bytes(found.bits)[1:]
            table = completed(HuffmanTable(tuple(counts), bytes(found.huffval[: sum(counts)])), symbols)
            found.bits[1:] = table.counts
            found.huffval[: len(table.symbols)] = table.symbols
