"""The options of a de-identified export, each against its column of Table E.1-1 of PS3.15."""

import datetime
import io
from pathlib import Path

import clinic as world
import pydicom
import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from test_deidentified import MARK, TABLE, UIDS, cleaned, full, written

from streamsrv.config import SettingsError
from streamsrv.tools.outgoing.deidentified import BURNED_IN, OFTEN_TEXT, OVERLAID, Deidentifier
from streamsrv.tools.outgoing.profile import OPTIONS, Profile, profile_of

SECRET = b"x" * 32
COLUMNS = [
    (option, letter, int(tag, 16))
    for line in (Path(__file__).parent / "table_e_1_1_options.txt").read_text().splitlines()[1:]
    for option, letter, *tags in [line.split()]
    for tag in tags
]
# Keywords of Table E.1-1 with the action C, of which nothing can be kept.
STAY_REMOVED = {"AE", "OB", "CS"}


def options_of(*names, words=()):
    return Deidentifier(SECRET, Profile(frozenset(names), frozenset(words)))


def result_of(deidentifier, made, tmp_path):
    return pydicom.dcmread(io.BytesIO(cleaned(deidentifier, written(made), tmp_path)[0]))


@pytest.mark.parametrize("option", sorted({option for option, *_ in COLUMNS} - {"clean-structured-content"}))
def test_an_option_keeps_its_column_and_no_more(tmp_path, option):
    original = full(ExplicitVRLittleEndian)
    words = [MARK.lower()] if option == "clean-descriptors" else []
    result = result_of(options_of(option, words=words), original, tmp_path)
    column = {tag: letter for name, letter, tag in COLUMNS if name == option and tag in original}
    assert len(column) > 8
    for tag in TABLE:
        if tag not in original or tag in (0x00120062, 0x00120063, 0x00120064):
            continue
        keyword, vr = keyword_for_tag(tag), dictionary_VR(tag)
        letter = column.get(tag, "")
        if letter == "C" and (vr in STAY_REMOVED or option == "retain-patient-characteristics"):
            letter = ""
        kept = tag in result and result[tag].value == original[tag].value
        if vr == "SQ":
            assert option == "clean-descriptors" or not letter or tag in result, keyword
        elif option == "retain-modified-dates" and letter == "C":
            assert kept == (vr in ("TM", "SH")), keyword
            assert vr not in ("DA", "DT") or "1965" < result[tag].value[:4] < "1977", keyword
        elif option != "retain-uids" or vr != "UI":
            assert kept == bool(letter), keyword
        else:
            assert kept or TABLE[tag] == "X", keyword
    assert result.DeidentificationMethodCodeSequence[1].CodeValue == OPTIONS[option].code
    expected = {"retain-dates": "UNMODIFIED", "retain-modified-dates": "MODIFIED"}.get(option, "REMOVED")
    assert result.LongitudinalTemporalInformationModified == expected


def test_the_codes_are_those_of_the_standard():
    found = [getattr(codes.cid7050, name) for name in dir(codes.cid7050)]
    known = {each.value: each.meaning for each in found if hasattr(each, "value")}
    for option in OPTIONS.values():
        assert set(option.meaning.split()) - {"Option"} <= set(known[option.code].split()), option
    assert {option.code for option in OPTIONS.values()} | {"113100", "113101", "113102"} == known.keys()


def dated(patient, study_date, **more):
    made = world.ct(1)
    made.PatientID, made.StudyDate, made.StudyTime = patient, study_date, "235959.5"
    for keyword, value in more.items():
        setattr(made, keyword, value)
    return made


def test_the_dates_of_a_patient_move_together(tmp_path):
    deidentifier = options_of("retain-modified-dates")
    more = {"AcquisitionDateTime": "20240301000000.25+0100", "TimezoneOffsetFromUTC": "+0100"}
    item = Dataset()
    item.StudyDate, item.PatientBirthDate = "20240301", "19700101"
    first = dated("P-1", "20240229", ReferencedSeriesSequence=[item], ExpiryDate="20240229", **more)
    second = dated("P-1", "2024.03.01", ContentDate="soon", AcquisitionDateTime="2024")
    results = [result_of(deidentifier, made, tmp_path) for made in (first, second, dated("P-2", "20240229"))]
    days = [datetime.datetime.strptime(each.StudyDate, "%Y%m%d").date() for each in results]
    assert days[1] - days[0] == datetime.timedelta(days=1)
    assert datetime.timedelta(days=365) < datetime.date(2024, 2, 29) - days[0] < datetime.timedelta(days=4020)
    assert days[2] != days[0]
    assert results[0].StudyTime == "235959.5"
    assert results[0].AcquisitionDateTime == f"{days[1]:%Y%m%d}000000.25+0100"
    assert (results[0].TimezoneOffsetFromUTC, results[0].ExpiryDate) == ("+0100", f"{days[0]:%Y%m%d}")
    assert results[0].ReferencedSeriesSequence[0].StudyDate == f"{days[1]:%Y%m%d}"
    assert not results[0].ReferencedSeriesSequence[0].PatientBirthDate
    assert not results[0].PatientBirthDate
    assert results[1].ContentDate != "soon"
    assert len(results[1].AcquisitionDateTime) == 4
    assert b"2024" not in b"".join(str(each).encode() for each in results)


def test_only_known_words_stay_in_descriptions(tmp_path):
    made = world.ct(1)
    made.SpecificCharacterSet = "ISO_IR 192"
    made.StudyDescription, made.SeriesDescription = "CT Thorax^Müller, T2-weighted 3.5mm", "Jane Doe"
    made.ImageComments, made.Allergies = "thorax\r\nof Jane_Doe", ["nuts", "Doe"]
    made.AdmittingDiagnosesCodeSequence = [
        world.code("1", "SCT", "thorax of Doe"),
        world.code("Doe", "99HERE", "Doe"),
    ]
    made.AdmittingDiagnosesCodeSequence[0].EquivalentCodeSequence = [world.code("Doe", "99HERE", "Doe")]
    request = Dataset()
    request.RequestedProcedureDescription, request.AccessionNumber = "thorax Doe", "A-1"
    made.RequestAttributesSequence = [request]
    words = ["ct", "thorax", "t2", "3.5mm", "nuts"]
    result = result_of(options_of("clean-descriptors", words=words), made, tmp_path)
    assert result.StudyDescription == "CT Thorax T2 3.5mm"
    assert "SeriesDescription" not in result
    assert (result.ImageComments, result.Allergies) == ("thorax", "nuts")
    assert [each.CodeMeaning for each in result.AdmittingDiagnosesCodeSequence] == ["thorax"]
    assert result.RequestAttributesSequence[0].RequestedProcedureDescription == "thorax"
    assert not result.RequestAttributesSequence[0].AccessionNumber
    assert "Doe" not in str(result)


def item_of(kind, concept, **values):
    made = Dataset()
    made.ValueType, made.RelationshipType = kind, "CONTAINS"
    made.ConceptNameCodeSequence = [world.code(concept, "DCM", "a concept")]
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def report():
    made = world.dataset(pydicom.uid.EnhancedSRStorage, "1.2.77.1", "1.2.77.2", "1.2.77.3")
    measured, reference = Dataset(), Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "77", [world.code("mm", "UCUM", "mm")]
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = made.SOPClassUID, "1.2.77.4"
    inner = [
        item_of("TEXT", "121071", TextValue="a lesion of Doe"),
        item_of("TEXT", "121013", TextValue="scanner 7"),
        item_of("PNAME", "121008", PersonName="Doe^Anna"),
        item_of("DATE", "121031", Date="19700101"),
        item_of("DATE", "111060", Date="20240229"),
        item_of("UIDREF", "121012", UID="1.2.77.5"),
        item_of("NUM", "121033", MeasuredValueSequence=[measured]),
        item_of("NUM", "121206", MeasuredValueSequence=[measured]),
        item_of("CODE", "121032", ConceptCodeSequence=[world.code("F", "DCM", "Female")]),
        item_of("CODE", "121058", ConceptCodeSequence=[world.code("P5", "DCM", "CT")]),
        item_of("IMAGE", "121112", ReferencedSOPSequence=[reference]),
        item_of("SCOORD", "111030", GraphicType="POINT", GraphicData=[1.0, 2.0]),
    ]
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ContentSequence = [item_of("CONTAINER", "126000", ContentSequence=inner)]
    return made


def test_structured_content_without_persons(tmp_path):
    deidentifier = options_of("clean-structured-content", "clean-descriptors", words=["lesion"])
    result = result_of(deidentifier, report(), tmp_path)
    text, device, name, birth, date, uid, age, length, sex, modality, image, point = result.ContentSequence[
        0
    ].ContentSequence
    assert (text.TextValue, device.TextValue) == ("lesion", "ANONYMIZED")
    assert (name.PersonName, birth.Date, date.Date) == ("ANONYMIZED", "19000101", "19000101")
    assert deidentifier.uid("1.2.77.5") == uid.UID
    assert not age.MeasuredValueSequence
    assert length.MeasuredValueSequence[0].NumericValue == 77
    assert sex.ConceptCodeSequence[0].CodeMeaning == "Unknown"
    assert modality.ConceptCodeSequence[0].CodeValue == "P5"
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == deidentifier.uid("1.2.77.4")
    assert point.GraphicData == [1.0, 2.0]
    names = ("clean-structured-content", "retain-device", "retain-dates", "retain-patient-characteristics")
    _, device, _, birth, date, uid, age, _, sex, *_ = (
        result_of(options_of(*names), report(), tmp_path).ContentSequence[0].ContentSequence
    )
    assert (device.TextValue, birth.Date, date.Date) == ("scanner 7", "19000101", "20240229")
    assert (uid.UID, sex.ConceptCodeSequence[0].CodeValue) == ("1.2.77.5", "F")
    assert age.MeasuredValueSequence[0].NumericValue == 77


def test_content_that_cannot_be_cleaned_is_refused(tmp_path):
    made = report()
    made.ContentSequence.append(item_of("TABLE", "121071"))
    content = written(made)
    with pytest.raises(Exception, match="of type TABLE"):
        cleaned(options_of("clean-structured-content"), content, tmp_path)
    assert b"lesion" not in cleaned(options_of(), content, tmp_path)[0]


def annotated():
    made = world.dataset(pydicom.uid.GrayscaleSoftcopyPresentationStateStorage, *UIDS.values())
    shape, text, compound, layer = Dataset(), Dataset(), Dataset(), Dataset()
    shape.GraphicAnnotationUnits, shape.GraphicType, shape.GraphicData = "PIXEL", "POINT", [1.0, 2.0]
    shape.GraphicDimensions, shape.NumberOfGraphicPoints, shape.GraphicFilled = 2, 1, "N"
    text.UnformattedTextValue, text.AnchorPoint = "Doe^Jane", [3.0, 4.0]
    compound.CompoundGraphicType = "RULER"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = world.CTImageStorage, "1.2.77.4"
    for item in (layer,):
        item.GraphicLayer, item.ReferencedImageSequence = "ONE", [reference]
        item.GraphicObjectSequence, item.TextObjectSequence = [shape], [text]
        item.CompoundGraphicSequence = [compound]
    only_text = Dataset()
    only_text.GraphicLayer, only_text.TextObjectSequence = "ONE", [text]
    made.GraphicAnnotationSequence = [layer, only_text]
    return made


def test_shapes_without_their_texts(tmp_path):
    deidentifier = options_of("clean-graphics")
    result = result_of(deidentifier, annotated(), tmp_path)
    (annotation,) = result.GraphicAnnotationSequence
    assert {each.keyword for each in annotation} == {
        "GraphicLayer",
        "GraphicObjectSequence",
        "ReferencedImageSequence",
    }
    assert annotation.GraphicObjectSequence[0].GraphicData == [1.0, 2.0]
    assert annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID == deidentifier.uid("1.2.77.4")
    made = annotated()
    del made.GraphicAnnotationSequence[0]
    assert "GraphicAnnotationSequence" not in result_of(deidentifier, made, tmp_path)
    basic = result_of(options_of(), annotated(), tmp_path)
    assert basic.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicData != [1.0, 2.0]


def with_private(syntax):
    made = world.ct(1)
    made.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        made.PixelData = world.ct_pixels(1).byteswap().tobytes()
    safe = made.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    safe.add_new(0x0C, "IS", "1000")
    safe.add_new(0x08, "CS", MARK)  # not in the table
    made.private_block(0x0019, "OTHER", create=True).add_new(0x0C, "LO", MARK)
    made.private_block(0x0099, "NQHeader", create=True).add_new(0x02, "UI", "1.2.77.4")
    declared = made.private_block(0x0021, "DECLARED", create=True)
    declared.add_new(0x01, "LO", "safe")
    partly = made.private_block(0x0023, "PARTLY", create=True)
    partly.add_new(0x01, "LO", "safe")
    partly.add_new(0x02, "LO", MARK)
    characteristics = []
    for creator, group, status, elements in (
        ("DECLARED", 0x21, "SAFE", None),
        ("PARTLY", 0x23, "MIXED", [1]),
        ("OTHER", 0x19, "UNSAFE", None),
    ):
        item = Dataset()
        item.PrivateGroupReference, item.PrivateCreatorReference = group, creator
        item.BlockIdentifyingInformationStatus = status
        if elements:
            item.NonidentifyingPrivateElements = elements
        characteristics.append(item)
    made.PrivateDataElementCharacteristicsSequence = characteristics
    inner = Dataset()
    inner.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0D, "CS", "NONE")
    inner.private_block(0x0019, "OTHER", create=True).add_new(0x01, "LO", MARK)
    made.ReferencedSeriesSequence = [inner]
    return made


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_safe_private_attributes_stay(tmp_path, syntax):
    deidentifier = options_of("retain-safe-private")
    content, _ = cleaned(deidentifier, written(with_private(syntax)), tmp_path)
    result = pydicom.dcmread(io.BytesIO(content))
    assert MARK.encode() not in content
    assert str(result.get_private_item(0x19, 0x0C, "SIEMENS MR HEADER").value).strip() in ("1000", "b'1000'")
    uid = result.get_private_item(0x99, 0x02, "NQHeader").value
    assert (uid if isinstance(uid, str) else uid.decode()).strip("\0") == deidentifier.uid("1.2.77.4")
    for group, creator in ((0x21, "DECLARED"), (0x23, "PARTLY")):
        assert result.private_block(group, creator)[1].value in ("safe", b"safe")
    inner = result.ReferencedSeriesSequence[0]
    assert inner.get_private_item(0x19, 0x0D, "SIEMENS MR HEADER").value.strip() == "NONE"
    assert sorted(each.value for each in result if each.tag.is_private_creator) == [
        *("DECLARED", "NQHeader", "PARTLY", "SIEMENS MR HEADER")
    ]
    basic, _ = cleaned(options_of(), written(with_private(syntax)), tmp_path)
    assert not [each for each in pydicom.dcmread(io.BytesIO(basic)).iterall() if each.tag.is_private]


@pytest.mark.parametrize(
    ("charset", "name"),
    [(["", "ISO 2022 IR 87"], "東京病院"), ("GB18030", "北京医院"), ("ISO_IR 100", "Köln")],
)
def test_kept_text_in_its_character_set(tmp_path, charset, name):
    made = world.ct(1)
    made.SpecificCharacterSet, made.InstitutionName = charset, name
    item = Dataset()
    item.InstitutionName = name
    made.ReferencedSeriesSequence = [item]
    result = result_of(options_of("retain-institution"), made, tmp_path)
    assert result.InstitutionName == result.ReferencedSeriesSequence[0].InstitutionName == name


def test_what_the_table_lacks(tmp_path):
    made = world.ct(1)
    made.PatientBirthDateInAlternativeCalendar = "Showa 45"
    made.PatientBodyMassIndex, made.SecondaryReviewDate = 33.0, "20240229"
    made.add_new(0x60000010, "US", 4)
    made.add_new(0x60000022, "LO", "Doe")
    made.add_new(0x60003000, "OW", bytes(8))
    made.ProtocolContextSequence = [item_of("TEXT", "121071", TextValue="Doe")]
    result = result_of(options_of("retain-dates", "retain-uids"), made, tmp_path)
    assert "Doe" not in str(result)
    assert "PatientBirthDateInAlternativeCalendar" not in result
    assert "PatientBodyMassIndex" not in result
    assert not [each for each in result if each.tag.group >> 8 == 0x60]
    assert "SecondaryReviewDate" in result
    assert "SecondaryReviewDate" not in result_of(options_of(), made, tmp_path)
    kept = result_of(options_of("retain-patient-characteristics"), made, tmp_path)
    assert kept.PatientBodyMassIndex == 33.0


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        ("basic,clean-pixel-data", None, "pixels are copied as they are"),
        ("basic,clean-recognizable-visual-features", None, "pixels are copied as they are"),
        ("basic,retain-dates,retain-modified-dates", None, "exclude each other"),
        ("basic,clean-descriptors", None, "--keep-words"),
        ("basic", "words", "go together"),
        ("basic,clean-descriptors", "empty", "no word"),
        ("basic,clean-descriptors", "missing", "cannot be read"),
        ("basic,retain-everything", None, "retain-safe-private"),
    ],
)
def test_a_profile_that_cannot_be(tmp_path, text, words, sentence):
    (tmp_path / "words").write_text("thorax # a comment\n")
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(SettingsError, match=sentence):
        profile_of(text, tmp_path / words if words else None)


def test_the_pixels_that_may_show_a_name(tmp_path):
    capture = world.everything()[5]
    overlaid, ultrasound = world.ct(1), world.ct(1)
    overlaid.add_new(0x60000102, "US", 12)
    ultrasound.Modality = "US"
    burned = world.ct(1)
    burned.BurnedInAnnotation = "YES"
    none = world.ct(1)
    none.Modality, none.BurnedInAnnotation = "US", "NO"
    for made, remark in (
        (capture, OFTEN_TEXT),
        (overlaid, OVERLAID),
        (ultrasound, OFTEN_TEXT),
        (burned, BURNED_IN),
        (none, ""),
    ):
        assert cleaned(options_of(), written(made), tmp_path)[1] == remark
