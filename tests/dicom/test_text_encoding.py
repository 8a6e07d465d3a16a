"""Text as bytes of character sets, read by pydicom and by our own decoder."""

import random

import pytest
from pydicom.charset import convert_encodings, decode_bytes

from streamsrv.dicom.charsets import decoder_for
from streamsrv.dicom.text_encoding import encoder_for

# PS3.5 H.3.1, H.3.2, I.2, J.3, K.2 and others.
EXAMPLES = [
    (("", "ISO 2022 IR 87"), "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    (("ISO 2022 IR 13", "ISO 2022 IR 87"), "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    (("", "ISO 2022 IR 87", "ISO 2022 IR 159"), "漢丂a^丂漢"),
    (("", "ISO 2022 IR 149"), "Hong^Gildong=洪^吉洞=홍^길동"),
    (("ISO 2022 IR 100", "ISO 2022 IR 144", "ISO 2022 IR 126"), "Äneas^Люкceмбypг Müller^Διονυσιος"),
    (("GB18030",), "Wang^XiaoDong=王^小东=𠀀"),
    (("ISO_IR 192",), "Wang^XiaoDong=王^小东=𠀀"),
    (("ISO_IR 100",), "Müller^Ä"),
    (("",), "Doe^Jane"),
]


@pytest.mark.parametrize(("sets", "name"), EXAMPLES)
def test_pydicom_reads_it(sets, name):
    content = encoder_for(sets, "\\^=")(name)
    assert decode_bytes(content, convert_encodings(list(sets)), {"^", "=", "\\"}) == name
    assert decoder_for(sets, b"\\^=")(content) == name


def test_the_example_of_the_standard():
    """PS3.5 K.2; pydicom does not know the set."""
    content = encoder_for(("", "ISO 2022 IR 58"), "\\^=")("Zhang^XiaoDong=张^小东=")
    assert content == b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="


@pytest.mark.parametrize(("sets", "name"), EXAMPLES)
def test_any_order_of_characters(sets, name):
    chance, letters = random.Random(7), sorted({*name, "\\", "a", "~", " ", "\n"})
    for _ in range(200):
        text = "".join(chance.choices(letters, k=12))
        assert decoder_for(sets, b"\\^=")(encoder_for(sets, "\\^=")(text)) == text


@pytest.mark.parametrize(
    ("sets", "text"),
    [(("",), "ü"), (("ISO_IR 100",), "山"), (("", "ISO 2022 IR 87"), "ü"), (("ISO_IR 13",), "¥")],
)
def test_a_character_that_no_set_has(sets, text):
    with pytest.raises(UnicodeEncodeError):
        encoder_for(sets, "\\")(text)
