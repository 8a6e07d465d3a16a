"""Text in every defined term of PS3.3 C.12.1.1.2, read as dcmtk reads it, and found by searches; and what a
decoder does with damage."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request

import pydicom.charset
import pytest
from hostile_files import dataset, element, padded, part10
from made_files import pydicom_read, read, readable_paths
from pydicom.charset import decode_bytes
from pydicom.valuerep import TEXT_VR_DELIMS
from small_client import multipart

from streamsrv.dicom.charsets import character_sets_of, decoder_for

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAME, DESCRIPTION, COMMENTS, SETS = 0x00100010, 0x00081030, 0x00104000, 0x00080005
VRS = {NAME: "PN", DESCRIPTION: "LO", COMMENTS: "LT"}

# Number of ISO-IR -> codec of Python, escape sequence without ESC, a name.
SINGLE_BYTE = {
    100: ("latin-1", "-A", "Müller^Ævar"),
    101: ("iso8859-2", "-B", "Dvořák^Łukasz"),
    109: ("iso8859-3", "-C", "Ĝorĝo^Ŝtefano"),
    110: ("iso8859-4", "-D", "Bērziņš^Ķēniņa"),
    126: ("iso8859-7", "-F", "Διονυσιος^Άλφα"),
    127: ("iso8859-6", "-G", "قباني^لنزار"),
    138: ("iso8859-8", "-H", "שרון^דבורה"),
    144: ("iso8859-5", "-L", "Люкceмбypг^Ёж"),
    148: ("iso8859-9", "-M", "Çavuşoğlu^Işık"),
    166: ("tis-620", "-T", "สมชาย^ใจดี"),
    203: ("iso8859-15", "-b", "Œuvré^Žižka €"),
    13: ("shift-jis", ")I", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
}


def designated(text, sequence):
    """Each component behind its escape sequence."""
    return b"^".join(b"\x1b" + sequence.encode() + component for component in text.split(b"^"))


def jis(text):
    """The two bytes of each character of JIS X 0208."""
    return bytes(byte & 0x7F for byte in text.encode("euc-jp"))


KANJI, BACK = b"\x1b$B", b"\x1b(B"
HONG = b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf"
YAMADA = KANJI + jis("山田") + BACK + b"^" + KANJI + jis("太郎") + BACK
# Specific Character Set, tag, bytes, values. dcmtk reads the same.
TABLE = [
    ("", NAME, b"Smith^John", ["Smith^John"]),
    *((f"ISO_IR {n}", NAME, name.encode(codec), [name]) for n, (codec, _, name) in SINGLE_BYTE.items()),
    *(
        (f"ISO 2022 IR {number}\\ISO 2022 IR 6", NAME, name.encode(codec), [name])
        for number, (codec, _, name) in SINGLE_BYTE.items()
    ),
    *(
        (f"\\ISO 2022 IR {number}", NAME, b"A" + designated(name.encode(codec), sequence), ["A" + name])
        for number, (codec, sequence, name) in SINGLE_BYTE.items()
    ),
    *(
        (term, NAME, "Wang^XiaoDong=王^小东".encode(codec), ["Wang^XiaoDong=王^小东"])
        for term, codec in (("ISO_IR 192", "utf-8"), ("GB18030", "gb18030"), ("GBK", "gbk"))
    ),
    # PS3.5 H.3, I.2, K.2
    ("\\ISO 2022 IR 87", NAME, b"Yamada^Tarou=" + YAMADA, ["Yamada^Tarou=山田^太郎"]),
    (
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        NAME,
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=" + YAMADA.replace(BACK, b"\x1b(J"),
        ["ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎"],
    ),
    (
        "\\ISO 2022 IR 87\\ISO 2022 IR 159",
        NAME,
        b"Ono=" + KANJI + jis("小") + b"\x1b$(D0!" + BACK,
        ["Ono=小丂"],
    ),
    ("\\ISO 2022 IR 149", NAME, HONG, ["Hong^Gildong=洪^吉洞=홍^길동"]),
    (
        "\\ISO 2022 IR 58",
        NAME,
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        ["Zhang^XiaoDong=张^小东"],
    ),
    (
        "\\ISO 2022 IR 58",
        COMMENTS,
        b"1\r\n\x1b$)A\xb5\xda\xb6\xfe\r\n\x1b$)A\xd0\xa1\\\xb6\xab\tend",
        ["1\r\n第二\r\n小\\东\tend"],
    ),
    # Delimiters and control characters bring the first set back, and only the delimiters of the VR.
    (
        "ISO 2022 IR 100\\ISO 2022 IR 149",
        NAME,
        b"\xe4 \x1b$)C\xb1\xe6 A^\xe4=\x1b$)C\xb1\xe6=\xe4",
        ["ä 길 A^ä=길=ä"],
    ),
    ("ISO 2022 IR 100\\ISO 2022 IR 149", DESCRIPTION, b"\x1b$)C\xb1\xe6^\xb1\xe6\\\xe4", ["길^길", "ä"]),
    (
        "ISO 2022 IR 100\\ISO 2022 IR 149",
        COMMENTS,
        b"\x1b$)C\xb1\xe6\\\xb1\xe6\r\n\xe4\t\x1b$)C\xb1\xe6\x0c\xe4",
        ["길\\길\r\nä\t길\x0cä"],
    ),
    # Bytes of two-byte characters that look like delimiters: 5C, 5E and 3D.
    (
        "\\ISO 2022 IR 87",
        NAME,
        b"A=" + KANJI + jis("表予晤曄") + BACK + b"^" + KANJI + jis("十") + BACK,
        ["A=表予晤曄^十"],
    ),
    (
        "\\ISO 2022 IR 87",
        DESCRIPTION,
        KANJI + jis("表予晤曄") + BACK + b"\\" + KANJI + jis("十") + BACK,
        ["表予晤曄", "十"],
    ),
    # JIS X 0201 has a yen sign and an overline in place of \ and ~, but \ still separates values.
    ("ISO_IR 13", DESCRIPTION, b"\xd4\xcf~1\\\xc0\xdb", ["ﾔﾏ‾1", "ﾀﾛ"]),
    ("ISO_IR 13", COMMENTS, b"\xd4\xcf~1\\\xc0\xdb", ["ﾔﾏ‾1¥ﾀﾛ"]),
]


def named(row):
    return f"{row[0].replace('ISO', '')} {VRS[row[1]]}"


def file_of(row):
    sets, tag, value, _ = row
    more = {SETS: element(SETS, "CS", padded(sets, b" ")), tag: element(tag, VRS[tag], padded(value, b" "))}
    return part10(dataset(more))


def values_of(row, metadata):
    """The texts of the row's attribute in DICOM JSON."""
    values = metadata[f"{row[1]:08X}"]["Value"]
    return ["=".join(value.values()) for value in values] if row[1] == NAME else values


@pytest.mark.parametrize("row", TABLE, ids=named)
def test_every_defined_term(row):
    instance, metadata = read(file_of(row))
    assert values_of(row, metadata) == row[3]
    assert not instance.warnings


@pytest.mark.skipif(shutil.which("dcm2json") is None, reason="dcm2json of dcmtk is not installed")
def test_dcmtk_reads_the_same(tmp_path):
    for row in TABLE:
        path = tmp_path / "file.dcm"
        path.write_bytes(file_of(row))
        done = subprocess.run(["dcm2json", path], capture_output=True, text=True, check=True)
        assert values_of(row, json.loads(done.stdout)) == row[3], row


def test_searches_find_the_names(server):
    names = [row for row in TABLE if row[1] == NAME]
    request = urllib.request.Request(
        f"{server.url}/studies",
        data=multipart([file_of(row) for row in names]),
        headers={
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=between-the-parts',
            "Accept": "application/dicom+json",
        },
    )
    with urllib.request.urlopen(request) as answer:
        assert len(json.load(answer)["00081199"]["Value"]) == len(names)
    for row in names:
        for group in row[3][0].split("="):
            for query in (group, group.split("^")[0] + "*"):
                url = f"{server.url}/studies?PatientName={urllib.parse.quote(query)}"
                with urllib.request.urlopen(url) as answer:
                    assert row[3] in [values_of(row, found) for found in json.load(answer)], (row, query)


# --- terms ---


@pytest.mark.parametrize(
    "term", ["ISO-IR 100", "ISO IR 100", "ISO 2022-IR 100", "ISO-2022-IR 87", "ISO_2022_IR_149"]
)
def test_spelling_slips_are_mended_as_by_pydicom(term):
    (found,), reason = character_sets_of((term,))
    assert pydicom.charset.convert_encodings([term]) == [pydicom.charset.python_encoding[found]]
    assert reason.startswith("read as ")


@pytest.mark.parametrize(
    ("term", "found", "reason"),
    [
        ("ISO_IR_192", "ISO_IR 192", "read as ISO_IR 192"),
        ("iso 2022 ir 58", "ISO 2022 IR 58", "read as ISO 2022 IR 58"),
        (" ISO 2022 IR 87 ", "ISO 2022 IR 87", ""),
    ],
)
def test_other_slips(term, found, reason):
    assert character_sets_of((term,)) == ((found,), reason)


@pytest.mark.parametrize(
    "term", ["NONSENSE", "rot13", "idna", "unicode_escape", "zlib", "ISO_IR 87", "ISO_IR 14"]
)
def test_unknown_terms_are_the_default_repertoire(term):
    sets, reason = character_sets_of((term,))
    assert decoder_for(sets)(b"\xe4") == "ä"
    assert "not a defined term" in reason


@pytest.mark.parametrize("term", pydicom.charset.python_encoding)
def test_terms_that_pydicom_knows(term):
    assert character_sets_of((term,))[1] == ""


def test_no_term_at_all():
    assert decoder_for(character_sets_of(())[0])(b"\xe4") == "ä"


def test_terms_that_stand_alone():
    assert character_sets_of(("ISO_IR 192", "ISO 2022 IR 87"))[0] == ("ISO_IR 192",)
    sets, reason = character_sets_of(("", "GB18030", "ISO 2022 IR 87"))
    assert sets == ("", "ISO 2022 IR 87")
    assert reason == "GB18030 does not allow code extensions"


def test_bytes_of_two_byte_characters_that_look_like_delimiters():
    """dcmtk refuses both."""
    row = ("GBK", DESCRIPTION, "乗\\區".encode("gbk"), ["乗", "區"])
    assert "乗區".encode("gbk") == b"\x81\\\x85^"
    assert values_of(row, read(file_of(row))[1]) == row[3]
    assert decoder_for(("", "ISO 2022 IR 87"))(KANJI + jis("表") + b" " + jis("予") + BACK) == "表 予"


def test_a_set_is_active_behind_other_text_of_the_line():
    """dcmtk shows the escape sequence."""
    value = b"\xe4\x1b$)C\xb1\xe6\t\xe4\x1b$)C\xb1\xe6\x0c\xe4"
    assert decoder_for(("ISO 2022 IR 100", "ISO 2022 IR 149"))(value) == "ä길\tä길\x0cä"


def raw_texts():
    for path in readable_paths():
        if "charset" not in str(path):
            continue
        dataset = pydicom_read(path.read_bytes())
        terms = dataset.get("SpecificCharacterSet") or ""
        terms = (terms,) if isinstance(terms, str) else tuple(terms)
        for tag in list(dataset.keys()):
            raw = dataset.get_item(tag)
            if getattr(raw, "VR", None) in ("PN", "LO", "LT", "SH", "ST", "UC", "UT") and isinstance(
                raw.value, bytes
            ):
                yield terms, raw.VR, raw.value


def test_decoders_agree_with_pydicom_on_its_character_set_files():
    texts = list(raw_texts())
    assert len(texts) > 100
    for terms, vr, raw in texts:
        codecs = pydicom.charset.convert_encodings(list(terms))
        delimiters = b"\\^=" if vr == "PN" else b"\\"
        found = decoder_for(character_sets_of(terms)[0], delimiters)(raw)
        assert found == decode_bytes(raw, codecs, TEXT_VR_DELIMS), (terms, raw)


# --- damage ---

DAMAGED = [
    ("", b"A\x1b$)A\xd5\xc5", "A张"),  # designated, but not declared
    ("\\ISO 2022 IR 149", b"\x1b$)C\xfb\xf3^\xd1\xce", "洪^吉"),  # not designated again behind ^
    ("\\ISO 2022 IR 149", b"\xfb\xf3", "洪"),  # not designated at all
    ("\\ISO 2022 IR 100", b"M\xfcller", "Müller"),
    ("\\ISO 2022 IR 100\\ISO 2022 IR 144", b"M\xfcller", "Müller"),  # any of several
    ("\\ISO 2022 IR 87", b"\x1b$B|b66" + BACK, "髙橋"),  # the first one is an addition of Windows
    ("\\ISO 2022 IR 87", KANJI + jis("山") + b"^" + KANJI + jis("田"), "山^田"),  # still in kanji at ^
    ("ISO_IR 13", "山田^太郎".encode("shift-jis"), "山田^太郎"),
    ("ISO 2022 IR 149", "똠".encode("cp949") + b"^", "�c^"),
    ("GBK", b"A\xff\xffB", "A��B"),
    ("ISO_IR 192", b"a\xff", "a�"),
    ("ISO_IR 126", b"a\xff", "a�"),
    ("\\ISO 2022 IR 87", KANJI + b"\x21", "!"),
    ("\\ISO 2022 IR 13", b"\x1b)I\xa0\xb1", "�ｱ"),
    ("", b"a\x1b", "a\x1b"),
    ("", b"a\x1b$zb", "a\x1b$zb"),
]


@pytest.mark.parametrize(("terms", "value", "text"), DAMAGED)
def test_strict_raises_and_lenient_reads_what_it_can(terms, value, text):
    sets, _ = character_sets_of(tuple(terms.split("\\")))
    with pytest.raises(UnicodeDecodeError):
        decoder_for(sets, b"\\^=")(value)
    found = decoder_for(sets, b"\\^=", lenient=True)(value)
    assert found == text
    found.encode()
