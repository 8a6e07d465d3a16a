"""Structured Reports, made by hand."""

from pydicom.dataset import Dataset
from retrieve_world import SERIES, STUDY

EVIL = "<script>alert(1)</script> & \"quotes\" 'and' \x07 bell\r\n第二行"
WAVEFORM, TEXT_REPORT = "1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.840.10008.5.1.4.1.1.88.11"


def code(value, scheme, meaning):
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def content_item(kind, name, relationship="CONTAINS", children=(), **attributes):
    made = Dataset()
    made.RelationshipType, made.ValueType = relationship, kind
    made.ConceptNameCodeSequence = [code("1", "99T", name)]
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    if children:
        made.ContentSequence = list(children)
    return made


def reference(instance, sop_class, **attributes):
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = sop_class, instance
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return [made]


def measured(value, unit):
    made = Dataset()
    made.NumericValue, made.MeasurementUnitsCodeSequence = value, [unit]
    return [made]


def evidence(*instances):
    study, series = Dataset(), Dataset()
    study.StudyInstanceUID, series.SeriesInstanceUID = "1.2.9", "1.2.9.1"
    series.ReferencedSOPSequence = [reference(uid, "1.2.840.10008.5.1.4.1.1.2")[0] for uid in instances]
    study.ReferencedSeriesSequence = [series]
    return [study]


def report(instance="1.2.3.4.1", content=()):
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", instance
    made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = STUDY, SERIES, "SR"
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientName, made.PatientID, made.PatientBirthDate = "Wang^XiaoDong=王^小东", "<ID>", "19600229"
    made.ContentDate, made.ContentTime = "20240131", "101500"
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = [code("11528-7", "LN", "Radiology Report")]
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "VERIFIED"
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerificationDateTime = "Li^Na=李^娜", "20240131101500"
    observer.VerifyingOrganization = "Hospital"
    made.VerifyingObserverSequence = [observer]
    made.CurrentRequestedProcedureEvidenceSequence = evidence("1.2.9.1.1", "1.2.9.1.2")
    made.ContentSequence = list(content)
    return made


def language(value="zh"):
    country = content_item("CODE", "Country", "HAS CONCEPT MOD")
    country.ConceptNameCodeSequence = [code("121046", "DCM", "Country of Language")]
    country.ConceptCodeSequence = [code("CN", "ISO3166_1", "China")]
    made = content_item("CODE", "Language", "HAS CONCEPT MOD", [country])
    made.ConceptNameCodeSequence = [code("121049", "DCM", "Language of Content Item and Descendants")]
    made.ConceptCodeSequence = [code(value, "RFC5646", "Chinese")]
    return made


def findings():
    millimetre, ratio = code("mm", "UCUM", "millimeter"), code("{ratio}", "UCUM", "ratio")
    picture = reference("1.2.9.1.1", "1.2.840.10008.5.1.4.1.1.2", ReferencedFrameNumber=[2, 5])
    circle = content_item("SCOORD", "Outline", GraphicType="CIRCLE", GraphicData=[1.0, 2.5, 3.0, 4.0])
    pointer = Dataset()
    pointer.RelationshipType, pointer.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 2]
    return content_item(
        "CONTAINER",
        "Findings",
        children=[
            content_item("TEXT", "Finding", TextValue=EVIL),
            content_item(
                "NUM", "Diameter", MeasuredValueSequence=measured("12.5", millimetre), children=[circle]
            ),
            content_item("NUM", "Share", MeasuredValueSequence=measured("3", ratio)),
            content_item("NUM", "Volume", MeasuredValueSequence=[]),
            content_item("CODE", "Diagnosis", ConceptCodeSequence=[code("C34", "I10", "Lung cancer")]),
            content_item("PNAME", "Reader", PersonName="Li^Na=李^娜"),
            content_item("DATETIME", "Seen", DateTime="20240131101530.5+0800"),
            content_item("IMAGE", "Slice", ReferencedSOPSequence=picture),
            content_item(
                "WAVEFORM",
                "ECG",
                ReferencedSOPSequence=reference("1.2.9.1.2", "1.2.840.10008.5.1.4.1.1.9.1.1"),
            ),
            content_item(
                "COMPOSITE",
                "Earlier",
                ReferencedSOPSequence=reference("1.2.8", "1.2.840.10008.5.1.4.1.1.88.11"),
            ),
            pointer,
        ],
    )
