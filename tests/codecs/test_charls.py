"""CharLS by its C interface: the bytes that pyjpegls writes, and pyjpegls where it is not found."""

import ctypes
import os
import signal

import numpy as np
import pytest
from frame_makers import GREY_12, JPEG_LS, picture_like

from framecodecs import libraries, registry
from framecodecs.coders import charls
from framecodecs.errors import EncodeError
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import load

RGB = FrameInfo(50, 61, 3, photometric_interpretation="RGB")


@pytest.fixture(autouse=True)
def found_again():
    yield
    charls._library.cache_clear()


def numbers(info):
    random = np.random.default_rng(7)
    return random.integers(0, 1 << info.bits_stored, info.shape).astype(
        "u1" if info.bits_stored <= 8 else "<u2"
    )


@pytest.mark.parametrize("near", [0, 3])
@pytest.mark.parametrize("bits", [2, 5, 8, 9, 12, 15, 16])
def test_it_writes_what_pyjpegls_writes(bits, near):
    info = FrameInfo(40, 34, 1, 8 if bits <= 8 else 16, bits, bits - 1)
    near = min(near, max((1 << bits) // 2 - 1, 1)) if near else 0
    values = numbers(info)
    other = load("pyjpegls").encode_buffer(values.tobytes(), 40, 34, 1, bits, near, 0)
    assert charls.encode(values, info, near) == bytes(other)


@pytest.mark.parametrize("near", [0, 2])
def test_colour_too(near):
    values = numbers(RGB)
    other = load("pyjpegls").encode_buffer(values.tobytes(), 50, 61, 3, 8, near, 2)
    assert charls.encode(values, RGB, near) == bytes(other)


def test_a_single_pixel_fits():
    info = FrameInfo(1, 1)
    coded = charls.encode(np.array([[200]], "u1"), info, 0)
    assert registry.decode(coded, JPEG_LS, info)[0] == b"\xc8"


@pytest.mark.parametrize(
    "info",
    [
        FrameInfo(300, 300),
        FrameInfo(300, 300, 1, 16, 16, 15),
        FrameInfo(300, 300, 3, photometric_interpretation="RGB"),
    ],
    ids=["8 bits", "16 bits", "colour"],
)
@pytest.mark.parametrize("room", [charls.ROOM, (0.5, 5.0)], ids=["at once", "after all"])
def test_noise_that_grows_has_room(monkeypatch, info, room):
    monkeypatch.setattr(charls, "ROOM", room)
    frame = numbers(info).tobytes()
    coded, now = registry.encode(frame, JPEG_LS, info)
    assert len(coded) > len(frame) + charls.MARKER_BYTES
    assert registry.decode(coded, JPEG_LS, now)[0] == frame


def test_what_grows_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr(charls, "ROOM", (0.0, 0.1))
    with pytest.raises(EncodeError, match="destination buffer is too small"):
        charls.encode(numbers(RGB), RGB, 0)


def test_what_it_refuses_is_an_error_in_words():
    with pytest.raises(EncodeError, match="near lossless argument"):
        charls.encode(numbers(GREY_12), GREY_12, 1000)


@pytest.mark.parametrize("fault", ["crash", "hang", "wrong pixels", "exception"])
def test_a_library_that_fails_its_self_check_is_not_used(monkeypatch, fault):
    """A crash and a hang cost a child process."""
    charls._library.cache_clear()
    monkeypatch.setattr(libraries, "CHECK_SECONDS", 1)
    usual = charls._encoded
    faults = {
        "crash": lambda *_: os.kill(os.getpid(), signal.SIGSEGV),
        "hang": lambda *_: ctypes.PyDLL(None).poll(None, 0, -1),
        "wrong pixels": lambda library, values, info, near: usual(library, values ^ 1, info, near),
        "exception": lambda *_: 1 // 0,
    }
    monkeypatch.setattr(charls, "_encoded", faults[fault])
    frame = picture_like(GREY_12, 1)
    coded, now = registry.encode(frame, JPEG_LS, GREY_12)
    assert charls._library() is None
    assert registry.decode(coded, JPEG_LS, now) == (frame, GREY_12)


def test_it_is_there():
    assert charls._library() is not None


def test_a_process_that_cannot_fork_does_not_use_it(monkeypatch):
    def refuse():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    charls._library.cache_clear()
    monkeypatch.setattr(os, "fork", refuse)
    assert charls._library() is None


@pytest.mark.parametrize("missing", ["package", "file", "another version"])
def test_without_it_pyjpegls_does_the_work(monkeypatch, tmp_path, missing):
    charls._library.cache_clear()
    if missing == "package":
        monkeypatch.setattr(libraries, "available", lambda package: False)
    elif missing == "file":
        monkeypatch.setattr(libraries, "Path", lambda path: tmp_path / "a" / "b")
        (tmp_path / "imagecodecs.libs").mkdir()
        (tmp_path / "imagecodecs.libs" / "libcharls.so").write_bytes(b"no library")
    else:
        monkeypatch.setattr(charls, "MAJOR", 3)
    assert charls.encode(numbers(GREY_12), GREY_12, 0) is None
    monkeypatch.undo()
    monkeypatch.setattr(charls, "_library", lambda: None)
    frame = picture_like(GREY_12, 1)
    coded, now = registry.encode(frame, JPEG_LS, GREY_12)
    assert registry.decode(coded, JPEG_LS, now)[0] == frame
