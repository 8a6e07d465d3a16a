from pydicom import datadict

from streamsrv.dicom import tags


def test_tag_of_keyword_and_hex():
    assert tags.tag_of("PatientID") == "00100020"
    assert tags.tag_of("7fe00010") == "7FE00010"
    assert tags.tag_of("00091001") == "00091001"  # private tags by number only
    assert tags.tag_of("NoSuchKeyword") is None
    assert tags.tag_of("0010002") is None
    assert tags.tag_of("") is None


def test_keyword_of():
    assert tags.keyword_of(tags.STUDY_INSTANCE_UID) == "StudyInstanceUID"
    assert tags.keyword_of("00091001") == ""


def test_every_constant_is_the_tag_of_its_name():
    constants = {
        name: value for name, value in vars(tags).items() if name.isupper() and isinstance(value, str)
    }
    for name, tag in constants.items():
        keyword = tags.keyword_of(tag)
        assert keyword.lower() == name.replace("_", "").lower()


def test_vr_of_standard_ambiguous_repeating_and_unknown_tags():
    assert tags.vr_of("00100010") == "PN"
    assert tags.vr_of("00280106") == "US"
    assert tags.vr_of_number(0x00280106) == "US or SS"
    assert tags.vr_of("7FE00010") == "OB"
    assert tags.vr_of_number(0x60023000) == "OB or OW"
    assert tags.vr_of_number(0x50060005) == "US"
    assert tags.vr_of_number(0x00080000) == "UL"  # group length
    assert tags.vr_of("00080003") is None
    assert tags.vr_of("00091001") is None
    assert tags.vr_of("FFFEE000") is None  # an item has no VR


def test_private_vr_by_creator():
    assert tags.private_vr(0x00191002, "GEMS_ACQU_01") == "SL"
    assert tags.private_vr(0x00191002, "NOBODY") is None


def test_the_tables_are_those_of_pydicom():
    repeating = (int(tag.replace("x", "2"), 16) for tag in datadict.RepeatersDictionary)
    for tag in (*datadict.DicomDictionary, *repeating):
        assert tags.keyword_of(f"{tag:08X}") == datadict.keyword_for_tag(tag)
        assert (tags.vr_of_number(tag) or "NONE") == datadict.dictionary_VR(tag)
    for creator, rows in datadict.private_dictionaries.items():
        for key in rows:
            tag = int(key.replace("x", "1"), 16)
            assert tags.private_vr(tag, creator) == private_vr_of_pydicom(tag, creator)


def private_vr_of_pydicom(tag, creator):
    try:
        return datadict.private_dictionary_VR(tag, creator)
    except KeyError:  # it does not find rows of all elements of a block ("001110xx")
        return None
