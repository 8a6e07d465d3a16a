import base64
import struct

import numpy as np
import orjson
import pytest

from streamsrv.dicom.values import NUMBERS, WORDS, converters_for, lenient, swapped

LATIN = ("ISO_IR 100",)
LITTLE = converters_for(LATIN, True)
BIG = converters_for(LATIN, False)
UTF8 = converters_for(("ISO_IR 192",), True)

CASES = [
    ("AE", b" A \\B ", ["A", "B"]),
    ("AS", b"042Y", ["042Y"]),
    ("AT", b"\x10\0\x20\0\xe0\x7f\x10\0", ["00100020", "7FE00010"]),
    ("CS", b"ORIGINAL\\PRIMARY ", ["ORIGINAL", "PRIMARY"]),
    ("CS", b"A\\\\B ", ["A", None, "B"]),
    ("DA", b"20250102", ["20250102"]),
    ("DS", b"1.50", [1.5]),
    ("DS", b"-0.5\\1e3\\+1\\.5\\2. ", [-0.5, 1000.0, 1.0, 0.5, 2.0]),
    ("DS", b" 7 \\", [7, None]),
    ("IS", b"12\\-3\\+4\\007 ", [12, -3, 4, 7]),
    ("IS", b"9007199254740993", [9007199254740993]),
    ("IS", b"+" + b"9" * 30, [1e30]),
    ("FL", struct.pack("<f", 0.5), [0.5]),
    ("FD", struct.pack("<2d", 1.25, -2.0), [1.25, -2.0]),
    ("US", b"\1\0\xff\xff", [1, 65535]),
    ("SS", b"\xff\xff", [-1]),
    ("UL", b"\xff\xff\xff\xff", [4294967295]),
    ("SL", b"\xff\xff\xff\xff", [-1]),
    ("UV", b"\xff" * 8, [2**64 - 1]),
    ("SV", struct.pack("<q", -(2**63)), [-(2**63)]),
    ("LO", b"a \\ b\0", ["a", " b"]),
    ("LO", b"\\", [None, None]),
    ("LT", b"C:\\temp \0", ["C:\\temp"]),
    ("ST", b"a\\b", ["a\\b"]),
    ("UT", b"a\\b", ["a\\b"]),
    ("UC", b"a\\b", ["a", "b"]),
    ("UR", b"http://x/a\\b ", ["http://x/a\\b"]),
    ("UI", b"1.2.3\0", ["1.2.3"]),
    ("PN", b"Doe^Jane ", [{"Alphabetic": "Doe^Jane"}]),
    ("PN", b"A=B=C\\D", [{"Alphabetic": "A", "Ideographic": "B", "Phonetic": "C"}, {"Alphabetic": "D"}]),
    ("PN", b"=B\\\\C", [{"Ideographic": "B"}, None, {"Alphabetic": "C"}]),
    ("SH", b"x", ["x"]),
    ("TM", b"101112.5", ["101112.5"]),
    ("DT", b"2025", ["2025"]),
]


@pytest.mark.parametrize(("vr", "value", "expected"), CASES)
def test_values(vr, value, expected):
    assert LITTLE[vr](value) == {"vr": vr, "Value": expected}
    orjson.dumps(LITTLE[vr](value))


@pytest.mark.parametrize("vr", LITTLE)
def test_empty_values_have_only_a_vr(vr):
    assert LITTLE[vr](b"") == {"vr": vr}
    if vr not in WORDS and vr not in ("OB", "UN"):
        assert LITTLE[vr](b"  ") == {"vr": vr}


@pytest.mark.parametrize("vr", ["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
def test_binary_is_base64_and_little_endian(vr):
    value = bytes(range(16))
    assert base64.b64decode(LITTLE[vr](value)["InlineBinary"]) == value
    expected = swapped(value, WORDS.get(vr, 1))
    assert base64.b64decode(BIG[vr](value)["InlineBinary"]) == expected


@pytest.mark.parametrize(("vr", "code"), [(vr, code) for vr, (code, _) in NUMBERS.items()])
def test_big_endian_numbers(vr, code):
    assert BIG[vr](struct.pack(">2" + code, 1, 2))["Value"] == [1, 2]


def test_big_endian_tags():
    assert BIG["AT"](b"\x00\x10\x00\x20")["Value"] == ["00100020"]


def test_text_in_the_character_set():
    assert UTF8["LO"]("ä\\ß".encode()) == {"vr": "LO", "Value": ["ä", "ß"]}
    assert UTF8["PN"]("Ä^Ö".encode()) == {"vr": "PN", "Value": [{"Alphabetic": "Ä^Ö"}]}
    assert UTF8["CS"](b"\xe4") == {"vr": "CS", "Value": ["ä"]}  # CS is always of the default repertoire


def test_whole_integers_of_a_ds_stay_exact_text():
    assert orjson.dumps(LITTLE["DS"](b"7\\0.10\\1.0")["Value"]) == b"[7,0.1,1.0]"


BROKEN = [
    ("DS", b"abc", ["abc"]),
    ("DS", b"1\\nan\\inf\\1_0\\1e999\\2", [1.0, "nan", "inf", "1_0", "1e999", 2.0]),
    ("DS", b"1e999", ["1e999"]),
    ("DS", b"+1e999", ["+1e999"]),
    ("DS", b"1.5\\\\x ", [1.5, None, "x"]),
    ("IS", b"1A", ["1A"]),
    ("IS", b"1.0\\1.5", [1, 1.5]),
    ("IS", b"1-2", ["1-2"]),
    ("IS", b"-", ["-"]),
    ("IS", b"9" * 5000, ["9" * 5000]),
    ("IS", b"+" + b"9" * 400, ["+" + "9" * 400]),
    ("IS", b"1e30", [1e30]),
    ("FL", struct.pack("<2f", float("nan"), 1), [None, 1.0]),
    ("FD", struct.pack("<3d", float("inf"), float("-inf"), 2), [None, None, 2.0]),
]


@pytest.mark.parametrize(("vr", "value", "shown"), BROKEN)
def test_broken_values_are_shown_as_far_as_possible(vr, value, shown):
    with pytest.raises((ValueError, struct.error)):
        LITTLE[vr](value)
    element, reason = lenient(vr, value, LATIN, True)
    assert element == {"vr": vr, "Value": shown}
    assert reason
    orjson.dumps(element)


@pytest.mark.parametrize("vr", [*NUMBERS, "AT"])
def test_numbers_of_a_wrong_length_are_left_out(vr):
    with pytest.raises(struct.error):
        LITTLE[vr](b"\1\2\3")
    element, reason = lenient(vr, b"\1\2\3", LATIN, True)
    assert element == {"vr": vr}
    assert "3 bytes" in reason


@pytest.mark.parametrize("vr", ["LO", "LT", "PN", "SH", "ST", "UC", "UT"])
def test_text_that_cannot_be_decoded_holds_a_replacement(vr):
    with pytest.raises(UnicodeDecodeError):
        UTF8[vr](b"a\xffb")
    element, reason = lenient(vr, b"a\xffb", ("ISO_IR 192",), True)
    assert "�" in orjson.dumps(element).decode()
    assert "Specific Character Set" in reason


def test_a_sum_that_overflows_is_no_reason():
    value = struct.pack("<2d", 1.7e308, 1.7e308)
    element, _ = lenient("FD", value, LATIN, True)
    assert element["Value"] == [1.7e308, 1.7e308]


def test_swapped():
    words = np.arange(10, dtype="<u4")
    assert swapped(words.tobytes(), 4) == words.astype(">u4").tobytes()
    assert swapped(b"abc", 2) == b"bac"
    assert swapped(b"abc", 1) == b"abc"
    assert swapped(b"", 8) == b""
