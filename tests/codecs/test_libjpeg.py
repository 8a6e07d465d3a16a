"""JPEG of 12 bits by the C interface of libjpeg: imagecodecs and dcmtk read it; the fallback."""

import shutil
import signal
import subprocess
import sys

import failing_self_checks
import numpy as np
import pydicom
import pytest
from frame_makers import EXTENDED, GREY_12, JPEG_LS, LITTLE, as_array, picture_like
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from framecodecs import libraries, registry
from framecodecs.coders import libjpeg
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import load
from framecodecs.pool import messages
from framecodecs.pool.pool import FramePool, PoolLimits

TOP = 4095


@pytest.fixture(autouse=True)
def found_again():
    yield
    libjpeg._library.cache_clear()


def info_of(values, bits=12):
    return FrameInfo(*values.shape, 1, 16, bits, bits - 1)


def by_imagecodecs(values, quality):
    return bytes(load("imagecodecs").jpeg8_encode(values, quality, bitspersample=12))


def decoded(codestream):
    return load("imagecodecs").jpeg8_decode(codestream).astype(int)


def read_by_dcmtk(codestream, shape, folder):
    if shutil.which("dcmdjpeg") is None:
        pytest.skip("dcmdjpeg of dcmtk is not installed")
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXTENDED
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = encapsulate([codestream])
    dataset["PixelData"].VR = "OB"
    coded, native = folder / "coded.dcm", folder / "native.dcm"
    dataset.save_as(coded, enforce_file_format=True)
    subprocess.run(["dcmdjpeg", coded, native], check=True, capture_output=True)
    return np.frombuffer(pydicom.dcmread(native).PixelData, "<u2")[: shape[0] * shape[1]].reshape(shape)


def soft(rows, columns, seed=1):
    info = FrameInfo(rows, columns, 1, 16, 12, 11)
    return as_array(picture_like(info, seed), info)


def noise(rows, columns):
    return np.random.default_rng(rows).integers(0, TOP + 1, (rows, columns))


PICTURES = {
    "all 0": lambda rows, columns: np.zeros((rows, columns)),
    "all 4095": lambda rows, columns: np.full((rows, columns), TOP),
    "pixels 0 or 4095 by turns": lambda rows, columns: np.indices((rows, columns)).sum(0) % 2 * TOP,
    "blocks 0 or 4095 by turns": lambda rows, columns: (np.indices((rows, columns)) // 8).sum(0) % 2 * TOP,
    "the largest coefficient": lambda rows, columns: (
        np.isin(np.indices((rows, columns)) % 8, (0, 3, 4, 7)).sum(0) % 2 * TOP
    ),
    "0 or 4095 by chance": lambda rows, columns: (noise(rows, columns) > TOP // 2) * TOP,
    "noise": noise,
    "soft": soft,
}
SHAPES = [(1, 1), (1, 77), (77, 1), (9, 17), (300, 267)]  # the last has a sample


def largest_error(codestream):
    """Of any pixel, if each coefficient is wrong by half of its divisor, and one for rounding."""
    at = codestream.index(b"\xff\xdb") + 5
    divisors = dict(zip(ZIGZAG, codestream[at : at + 64], strict=True))
    frequency, place = np.indices((8, 8))
    basis = np.abs(np.cos((2 * place + 1) * frequency * np.pi / 16)) / 2
    basis[0] /= np.sqrt(2)
    return sum(np.outer(basis[v], basis[u]) * step / 2 for (v, u), step in divisors.items()).max() + 1


ZIGZAG = sorted(np.ndindex(8, 8), key=lambda at: (sum(at), at[sum(at) % 2 == 0]))


QUALITIES = [1, 50, 90, 100]
# Each picture has each shape and each quality, and each shape has each quality.
CASES = [
    (name, shape, QUALITIES[(row + column) % len(QUALITIES)])
    for row, name in enumerate(PICTURES)
    for column, shape in enumerate(SHAPES)
]


@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "shape", "quality"), CASES)
def test_two_decoders_read_what_it_was(tmp_path, name, shape, quality):
    values = PICTURES[name](*shape).astype("<u2")
    coded = libjpeg.encode(values, quality)
    assert np.abs(decoded(coded) - values).max() <= largest_error(coded)
    by_dcmtk = read_by_dcmtk(coded, shape, tmp_path)
    assert np.abs(by_dcmtk - decoded(coded)).max() <= 1


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("name", ["noise", "soft"])
def test_no_more_is_lost_than_by_imagecodecs(name, quality):
    values = PICTURES[name](300, 267).astype("<u2")
    mine, other = (
        np.sqrt(np.square(decoded(coded) - values).mean())
        for coded in (libjpeg.encode(values, quality), by_imagecodecs(values, quality))
    )
    assert mine <= 1.002 * other


@pytest.mark.no_cover
@pytest.mark.parametrize("quality", range(1, 101))
def test_divisors_are_those_of_imagecodecs(quality):
    values = soft(16, 16)
    mine, other = libjpeg.encode(values, quality), by_imagecodecs(values, quality)
    assert b"\xff\xdb" in mine
    assert mine[: mine.index(b"\xff\xc4")] == other[: other.index(b"\xff\xc4")]


@st.composite
def pictures(draw):
    rows, columns = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    top = (1 << draw(st.integers(9, 12))) - 1
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = {
        "noise": lambda: random.integers(0, top + 1, (rows, columns)),
        "ends": lambda: random.choice([0, top], (rows, columns)),
        "few": lambda: (random.random((rows, columns)) < 0.01) * top,
        "ramp": lambda: np.linspace(0, top, rows * columns).reshape(rows, columns),
    }
    return made[draw(st.sampled_from(sorted(made)))]().astype("<u2")


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(values=pictures(), quality=st.integers(1, 100), every=st.integers(1, 4))
def test_tables_of_a_sample_write_the_same_coefficients(values, quality, every):
    with pytest.MonkeyPatch.context() as patch:
        whole = libjpeg.encode(values, quality)
        for name, value in (("SMALL", 1), ("LITTLE", 0), ("SAMPLE", every), ("UNLIKE", 1e9)):
            patch.setattr(libjpeg, name, value)
        sampled = libjpeg.encode(values, quality)
        assert (sampled != whole) == (values.shape[0] // 8 >= every)
        assert np.array_equal(decoded(sampled), decoded(whole))
        assert libjpeg.encode(values.copy(), quality) == sampled


@pytest.mark.parametrize("quality", [75, 90, 100])
def test_a_sample_costs_no_percent_of_the_size(quality):
    values = soft(512, 512)
    mine = libjpeg.encode(values, quality)
    assert len(mine) < 1.01 * len(by_imagecodecs(values, quality))
    assert mine != libjpeg_of_two_passes(values, quality)


def libjpeg_of_two_passes(values, quality):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libjpeg, "SMALL", values.size)
        return libjpeg.encode(values, quality)


def test_a_picture_unlike_its_sample_is_read_whole():
    values = noise(512, 512).astype("<u2")
    for row in range(libjpeg.SAMPLE // 2, 64, libjpeg.SAMPLE):
        values[8 * row : 8 * row + 8] = 7
    assert libjpeg.encode(values, 90) == libjpeg_of_two_passes(values, 90)


def test_a_picture_with_little_in_it_is_read_whole():
    values = soft(512, 512) >> 6
    assert len(libjpeg.encode(values, 50)) < libjpeg.LITTLE
    assert libjpeg.encode(values, 50) == libjpeg_of_two_passes(values, 50)


def test_rows_may_lie_apart():
    values = soft(300, 267)
    wide = np.zeros((300, 400), "<u2")
    wide[:, 5:272] = values
    assert libjpeg.encode(wide[:, 5:272], 90) == libjpeg.encode(values, 90)


def test_of_a_frame_only_stored_bits_are_written():
    info = FrameInfo(300, 267, 1, 16, 10, 9)
    values = soft(300, 267) >> 2
    coded, now = registry.encode((values | 0xFC00).tobytes(), EXTENDED, info)
    assert (coded, now) == (libjpeg.encode(values, 90), info)


@pytest.mark.parametrize(
    "missing", ["package", "file", "another interface", "another structure", "8 bits only"]
)
def test_without_it_imagecodecs_does_the_work(monkeypatch, tmp_path, missing):
    libjpeg._library.cache_clear()
    if missing == "package":
        monkeypatch.setattr(libraries, "available", lambda package: False)
    elif missing == "file":
        monkeypatch.setattr(libraries, "Path", lambda path: tmp_path / "a" / "b")
        (tmp_path / "imagecodecs.libs").mkdir()
        (tmp_path / "imagecodecs.libs" / "libjpeg.so").write_bytes(b"no library")
    elif missing == "another interface":
        monkeypatch.setattr(libjpeg, "VERSION", 62)
    elif missing == "another structure":

        class Longer(libjpeg._Compressor):
            _fields_ = (("more", libjpeg.ctypes.c_int * 2),)

        monkeypatch.setattr(libjpeg, "_Compressor", Longer)
    else:
        monkeypatch.setattr(libjpeg, "carried", lambda package, names: [libjpeg.ctypes.CDLL(None)])
    values = soft(64, 80)
    assert libjpeg.encode(values, 90) is None
    monkeypatch.undo()
    monkeypatch.setattr(libjpeg, "_library", lambda: None)
    coded, _ = registry.encode(values.tobytes(), EXTENDED, GREY_12)
    assert coded == by_imagecodecs(values, 90)


@pytest.mark.parametrize("fault", ["crash", "error exit", "wrong pixels"])
def test_a_library_that_fails_its_self_check_is_not_used(monkeypatch, fault):
    libjpeg._library.cache_clear()
    usual = libjpeg._encoded
    faults = {
        "crash": lambda *_: libjpeg.ctypes.string_at(0),
        "error exit": lambda library, values, quality: usual(library, values[:0], quality),
        "wrong pixels": lambda library, values, quality: usual(library, values >> 1, quality),
    }
    monkeypatch.setattr(libjpeg, "_encoded", faults[fault])
    values = soft(64, 80)
    coded, _ = registry.encode(values.tobytes(), EXTENDED, info_of(values))
    assert libjpeg._library() is None
    assert coded == by_imagecodecs(values, 90)


def test_a_pixel_process_uses_the_fallback():
    """Its libraries fail the self-check when it starts."""
    values = soft(64, 80)
    with FramePool(1, PoolLimits(modules=("failing_self_checks",))) as pool:
        for syntax in (EXTENDED, JPEG_LS):
            frames = [values.tobytes()]
            coded = pool.submit(messages.transcode_frames, frames, LITTLE, syntax, info_of(values)).result(60)
            assert coded[0] != registry.encode(frames[0], syntax, info_of(values)) or syntax == JPEG_LS
            back, _ = registry.decode(coded[0][0], syntax, coded[0][1])
            assert np.abs(np.frombuffer(back, "<u2").reshape(64, 80).astype(int) - values).max() <= 40
        ((used, _),) = pool.submit(failing_self_checks.libraries_in_use, []).result(30)
        assert used == b"none"


def test_it_is_there():
    """The wheel that is tested carries it: else nothing else here says anything."""
    assert libjpeg._library() is not None


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((8, 8), "u1"),
        np.zeros((8, 8, 3), "<u2"),
        np.zeros((0, 8), "<u2"),
        np.zeros((1, 65_501), "<u2"),
        np.zeros((65_501, 1), "<u2"),
    ],
    ids=["bytes", "colour", "nothing", "wide", "high"],
)
def test_what_libjpeg_would_complain_of_is_left_to_imagecodecs(values):
    assert libjpeg.encode(values, 90) is None


def test_the_longest_sides_there_are():
    for values in (np.zeros((1, 65_500), "<u2"), np.zeros((65_500, 1), "<u2")):
        assert decoded(libjpeg.encode(values, 90)).size == values.size


def test_frames_too_large_for_this_memory_are_left_to_imagecodecs(monkeypatch):
    monkeypatch.setattr(libjpeg, "LARGEST", 8 * 8)
    assert libjpeg.encode(np.zeros((8, 8), "<u2"), 90)
    assert libjpeg.encode(np.zeros((8, 9), "<u2"), 90) is None


def test_an_error_all_the_same_ends_the_process():
    """No picture is empty: libjpeg reports an error, and its next step is undefined."""
    program = (
        "from framecodecs.coders import libjpeg\n"
        "with libjpeg._JpegCompressor(libjpeg._library(), (8, 8), 90) as encoder:\n"
        "    encoder.write(libjpeg.np.zeros(0, 'uintp'), optimize=True)\n"
        "print('went on')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGABRT, b"")


def test_where_memory_is_short_python_says_so():
    """Under each limit of memory, MemoryError comes before an error of libjpeg, which ends the process."""
    program = """
import resource
import numpy as np
from framecodecs.coders import libjpeg

half = np.zeros((2048, 2048), np.uint16)
rest = np.random.default_rng(1).integers(0, 4096, (2048, 2048), np.uint16)
values = np.where(np.arange(2048)[:, None] % 64 < 32, half, rest)
libjpeg.encode(values[:64, :64].copy(), 90)
have = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
said = set()
for extra in range(0, 120, 3):
    resource.setrlimit(resource.RLIMIT_AS, (have + (extra << 20), resource.RLIM_INFINITY))
    try:
        said.add(type(libjpeg.encode(values, 90)).__name__)
    except MemoryError:
        said.add("MemoryError")
print(*sorted(said))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, [b"MemoryError", b"bytes"]), ended.stderr
