"""Decoders against pydicom.charset on its character set files, and what each does with damage."""

import pydicom.charset
import pytest
from made_files import pydicom_read, readable_paths
from pydicom.charset import decode_bytes, python_encoding
from pydicom.valuerep import TEXT_VR_DELIMS

from streamsrv.dicom.charsets import codecs_of, decoder_for

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("term", python_encoding)
def test_every_defined_term_has_pydicoms_codec(term):
    codecs, reason = codecs_of((term,))
    assert codecs == (python_encoding[term],)
    assert reason == ""


@pytest.mark.parametrize(
    "term", ["ISO-IR 100", "ISO IR 100", "ISO 2022-IR 100", "ISO-2022-IR 87", "ISO_2022_IR_149"]
)
def test_spelling_slips_are_mended_as_by_pydicom(term):
    codecs, reason = codecs_of((term,))
    assert list(codecs) == pydicom.charset.convert_encodings([term])
    assert reason.startswith("read as ")


@pytest.mark.parametrize("term", ["NONSENSE", "rot13", "idna", "unicode_escape", "zlib"])
def test_unknown_terms_are_the_default_repertoire(term):
    assert codecs_of((term,))[0] == ("latin-1",)
    assert "not a defined term" in codecs_of((term,))[1]


def test_no_term_at_all():
    assert decoder_for(codecs_of(())[0])(b"\xe4") == "ä"


def test_terms_that_stand_alone():
    assert codecs_of(("ISO_IR 192", "ISO 2022 IR 87"))[0] == ("UTF8",)
    codecs, reason = codecs_of(("", "GB18030", "ISO 2022 IR 87"))
    assert codecs == ("iso8859", "iso2022_jp")
    assert reason == "GB18030 does not allow code extensions"


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
                yield terms, raw.value


def test_decoders_agree_with_pydicom_on_its_character_set_files():
    texts = list(raw_texts())
    assert len(texts) > 100
    for terms, raw in texts:
        codecs, _ = codecs_of(terms)
        assert decoder_for(codecs)(raw) == decode_bytes(raw, codecs, TEXT_VR_DELIMS)


def test_a_delimiter_ends_what_an_escape_sequence_designated():
    codecs = ("latin-1", "iso_ir_126")
    value = b"A\x1b-F\xe1\r\n\xe4"
    assert decoder_for(codecs)(value) == decode_bytes(value, codecs, TEXT_VR_DELIMS) == "Aα\r\nä"


def test_strict_raises_and_lenient_replaces():
    for codecs, value in (
        (("utf-8",), b"a\xff"),
        (("latin-1", "iso2022_jp"), b"a\x1b$B\xff\xff"),
        (("latin-1",), b"a\x1b$Bxx"),  # an escape sequence of a set that is not declared
        (("utf-8",), b"a\xff\x1bzz"),
    ):
        with pytest.raises(UnicodeDecodeError):
            decoder_for(codecs)(value)
        text = decoder_for(codecs, True)(value)
        assert text.startswith("a")
        text.encode("utf-8")
