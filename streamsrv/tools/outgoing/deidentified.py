"""De-identified copies of instances: the Basic Application Level Confidentiality Profile of DICOM PS3.15
Annex E, with some of its options.

Strategy: the package dicom-anonymizer has Table E.1-1, the action for each attribute. This module applies the
actions on all levels of sequences, because that package does it on the top level only. The pixels are copied
from the file as they are.

Rules
- Beyond the table are removed: private attributes, attributes that the dictionary does not know, group
  lengths. Names of persons are replaced, and UIDs that the standard does not define are mapped.
- UIDs and Patient IDs are mapped with a secret (HMAC), so the same one is the same in every run of an export.
- Preamble and file meta information are new.
- An instance that cannot be read as a whole is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pydicom
from pydicom.datadict import dictionary_has_tag, keyword_for_tag, repeater_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from streamsrv import __version__
from streamsrv.config import SettingsError
from streamsrv.dicom.explicit import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from streamsrv.dicom.frames import UNDEFINED, scan_items
from streamsrv.dicom.part10 import read_instance
from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import StreamsrvError

PIECE = 1 << 20
LONGEST_DEFLATED = 256 << 20  # bytes of a deflated file: it is inflated in memory
UNLIMITED = 1 << 62
DELIMITER = 8  # bytes
LIMITS = ReadLimits(max_attributes=0)
TABLE = "dicomfields_2026c"
# The names of the actions of dicom-anonymizer, and the letters of Table E.1-1 by which they are carried out.
ACTIONS = {
    "delete": "X",
    "empty": "Z",
    "replace": "D",
    "replace_UID": "U",
    "empty_or_replace": "D",
    "delete_or_empty": "Z",
    "delete_or_replace": "D",
    "delete_or_empty_or_replace": "D",
    "delete_or_empty_or_replace_UID": "K",
}
BASIC = "basic"
# Option -> code and meaning (PS3.16 CID 7050), and the keywords that it keeps. Dates and UIDs go by their VR.
OPTIONS: dict[str, tuple[str, str, str]] = {
    "retain-uids": ("113110", "Retain UIDs Option", ""),
    "retain-dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option", ""),
    "retain-patient-characteristics": (
        "113108",
        "Retain Patient Characteristics Option",
        "EthnicGroup PatientAge PatientSex PatientSexNeutered PatientSize PatientWeight PregnancyStatus "
        "SelectorASValue SmokingStatus",
    ),
    "retain-device": (
        "113109",
        "Retain Device Identity Option",
        "BeamHoldTransitionDateTime CalibrationDate CalibrationDateTime CalibrationTime CassetteID "
        "DateOfInstallation DateOfLastCalibration DateOfLastDetectorCalibration DateOfManufacture "
        "DateTimeOfLastCalibration DetectorID DeviceDescription DeviceLabel DeviceSerialNumber DeviceUID "
        "GantryID GeneratorID LensMake LensModel LensSerialNumber LensSpecification "
        "ManufacturerDeviceClassUID ManufacturerDeviceIdentifier ModifyingDeviceID ModifyingSystem "
        "PerformedStationGeographicLocationCodeSequence PerformedStationName "
        "PerformedStationNameCodeSequence PlateID ScheduledProcedureStepLocation "
        "ScheduledStationGeographicLocationCodeSequence ScheduledStationName "
        "ScheduledStationNameCodeSequence ScheduledStudyLocation SourceManufacturer SourceSerialNumber "
        "StationName TimeOfLastCalibration TimeOfLastDetectorCalibration TransducerIdentificationSequence "
        "TreatmentMachineName UDISequence UniqueDeviceIdentifier XRayDetectorID XRayDetectorLabel "
        "XRaySourceID",
    ),
    "retain-institution": (
        "113112",
        "Retain Institution Identity Option",
        "ClinicalTrialCoordinatingCenterName ClinicalTrialProtocolEthicsCommitteeName ClinicalTrialSiteID "
        "ClinicalTrialSiteName InstitutionAddress InstitutionalDepartmentName "
        "InstitutionalDepartmentTypeCodeSequence InstitutionCodeSequence InstitutionName "
        "SourceOfPreviousValues",
    ),
}
# UIDs that name no instance: a class, a coding scheme, a context group, a mapping resource.
CLASSES = frozenset(
    ("SOPClassUID", "ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "OriginalSpecializedSOPClassUID")
) | {
    *("CodingSchemeUID", "ContextUID", "MappingResourceUID", "ContextGroupExtensionCreatorUID"),
    *("SOPClassesInStudy", "SOPClassesSupported", "AvailableTransferSyntaxUID"),
}
# Attributes that the option for dates keeps, beside those with the VR of a date or time.
TIMES = frozenset(("TimezoneOffsetFromUTC", "CertifiedTimestamp", "FrameOriginTimestamp"))
PATIENT_NAME, PATIENT_ID = 0x00100010, 0x00100020
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
ORDER = {True: "<", False: ">"}
REGISTERED = "1.2.840.10008."
DUMMIES: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"), 0),
    **dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW", "UN"), bytes(8)),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101",
    "TM": "000000",
    "DS": "0",
    "IS": "0",
    "UR": "http://anonymized.invalid",
}


class CannotDeidentify(Exception):
    """This instance is not exported."""


class Remark(NamedTuple):
    """`has_pixels`, and the value of Burned In Annotation, which may be empty."""

    has_pixels: bool
    burned_in: str


def profile_of(text: str) -> frozenset[str]:
    """The options of `basic,retain-dates,...`. Raises SettingsError."""
    profile, *options = [each.strip() for each in text.split(",")]
    if profile != BASIC:
        raise SettingsError(f"--deidentify: the profile {profile!r} is not {BASIC}")
    for option in options:
        if option not in OPTIONS:
            raise SettingsError(f"--deidentify: {option!r} is none of {', '.join(OPTIONS)}")
    return frozenset(options)


def table_of_actions() -> dict[tuple[int, ...], str]:
    """(group, element) -> letter; (group, element, mask, mask) for repeating groups. Raises SettingsError if
    the package is not installed."""
    try:
        library: Any = importlib.import_module("dicomanonymizer.simpledicomanonymizer")
    except ImportError as error:
        raise SettingsError(
            f"--deidentify needs the package {error.name}: install streamsrv[deidentify]"
        ) from error
    return {tag: ACTIONS[action.__name__] for tag, action in library.initialize_actions(TABLE).items()}


class Deidentifier:
    """Threads share it."""

    def __init__(self, secret: bytes, options: frozenset[str] = frozenset()) -> None:
        """Raises SettingsError."""
        self._secret = secret
        self._options = options
        self._kept = {keyword for option in options for keyword in OPTIONS[option][2].split()}
        table = table_of_actions()
        self._actions = {tag: letter for tag, letter in table.items() if len(tag) == 2}
        self._groups = [tag for tag in table if len(tag) == 4]
        # Values of files in use break rules of their VR; each would be a warning.
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

    def uid(self, old: str) -> str:
        """A UID below 2.25 (PS3.5 B.2)."""
        if not old or old.startswith(REGISTERED) or "retain-uids" in self._options:
            return old
        return f"2.25.{int.from_bytes(self._digest('uid', old)[:16], 'big') >> 1}"

    def patient(self, old: str, study: str) -> str:
        """The pseudonym for a Patient ID. Without one each study is another patient."""
        return f"P{self._digest('patient', old or f'of study {study}').hex()[:16].upper()}"

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._secret, f"{kind}\0{value}".encode(), hashlib.sha256)

    # A file

    def copy(self, source: Path, write: Callable[[bytes], None]) -> Remark:
        """Calls `write` with the pieces of the de-identified file. Raises CannotDeidentify."""
        try:
            with source.open("rb") as file:
                _require_whole(file)
                head, pixels, remark = self._head(file)
                write(head)
                if pixels is not None:
                    for piece in _pixels(file, pixels):
                        write(piece)
            return remark
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, EOFError) as fault:
            raise CannotDeidentify(f"it cannot be de-identified: {fault}") from fault
        except (StreamsrvError, InvalidDicomError, RecursionError, struct.error) as fault:
            detail = getattr(fault, "detail", None) or str(fault)
            raise CannotDeidentify(f"it cannot be de-identified: {detail}") from fault

    def _head(self, file: IO[bytes]) -> tuple[bytes, Any, Remark]:
        """The file up to the pixels, where the position of `file` then is, and the transfer syntax of the
        pixels. A deflated file as a whole, and None."""
        instance = pydicom.dcmread(file, stop_before_pixels=True)
        syntax = instance.file_meta.TransferSyntaxUID
        has_pixels = _tag_at(file, syntax.is_little_endian) in PIXELS
        if syntax == DeflatedExplicitVRLittleEndian:
            if os.fstat(file.fileno()).st_size > LONGEST_DEFLATED:
                raise CannotDeidentify(f"a deflated file of more than {LONGEST_DEFLATED >> 20} MiB")
            file.seek(0)
            instance = pydicom.dcmread(file)
            has_pixels = False  # they are in the head
        burned_in = str(instance.get("BurnedInAnnotation") or "")
        remark = Remark(has_pixels or "PixelData" in instance, burned_in)
        study = str(instance.get("StudyInstanceUID", ""))
        self._clean(instance, self.patient(str(instance.get("PatientID") or ""), study))
        self._mark(instance)
        if "EncapsulatedDocument" in instance and "EncapsulatedDocumentLength" in instance:
            instance.EncapsulatedDocumentLength = len(instance.EncapsulatedDocument)
        instance.file_meta = _meta(instance, syntax)
        instance.preamble = bytes(128)
        head = io.BytesIO()
        pydicom.dcmwrite(head, instance, enforce_file_format=True)
        return head.getvalue(), syntax if has_pixels else None, remark

    def _mark(self, instance: Dataset) -> None:
        """PS3.15 E.1.1 and C.7.1.1."""
        codes = [("113100", "Basic Application Confidentiality Profile")]
        codes += [OPTIONS[option][:2] for option in sorted(self._options)]
        instance.PatientIdentityRemoved = "YES"
        instance.DeidentificationMethod = f"streamsrv {__version__}, DICOM PS3.15 Annex E"
        instance.DeidentificationMethodCodeSequence = [_code(*each) for each in codes]
        kept = "retain-dates" in self._options
        instance.LongitudinalTemporalInformationModified = "UNMODIFIED" if kept else "REMOVED"

    # Attributes

    def _clean(self, dataset: Dataset, patient: str) -> None:
        """`patient` is the pseudonym of the instance."""
        own = str(dataset.get("PatientID") or "")
        for tag in list(dataset.keys()):
            if tag.is_private or not tag.element or not (dictionary_has_tag(tag) or repeater_has_tag(tag)):
                del dataset[tag]
                continue
            raw = dataset.get_item(tag)
            vr = _first(raw.VR if raw.VR not in (None, "UN") else dataset[tag].VR)
            if tag in (PATIENT_NAME, PATIENT_ID):
                pseudonym = self.patient(own, "") if own else patient
                dataset[tag] = DataElement(tag, vr, pseudonym)
            else:
                self._apply(self._letter(tag, vr), dataset, tag, vr, patient)

    def _letter(self, tag: Any, vr: str) -> str:
        """X: remove, Z: empty, D: a dummy, U: another UID, K: keep, with the items of a sequence clean."""
        keyword = keyword_for_tag(tag)
        found = self._actions.get((tag.group, tag.element))
        if found is None and any((tag.group & m, tag.element & n) == (g, e) for g, e, m, n in self._groups):
            found = "X"
        if found is None:
            return {"PN": "D", "UI": "K" if keyword in CLASSES else "U"}.get(vr, "K")
        is_date = vr in ("DA", "DT", "TM") or keyword in TIMES
        return "K" if keyword in self._kept or (is_date and "retain-dates" in self._options) else found

    def _apply(self, letter: str, dataset: Dataset, tag: Any, vr: str, patient: str) -> None:
        if letter == "X":
            del dataset[tag]
        elif letter == "Z":
            dataset[tag] = DataElement(tag, vr, [] if vr == "SQ" else None)
        elif letter == "D":
            self._replace(dataset, tag)
        elif letter == "U":
            self._map(dataset[tag])
        elif vr == "SQ":
            for item in dataset[tag].value:
                self._clean(item, patient)

    def _map(self, element: DataElement) -> None:
        if element.VR != "UI":
            raise CannotDeidentify(f"{element.tag} is no UID")
        if element.VM:
            values = [str(each) for each in (element.value if element.VM > 1 else [element.value])]
            element.value = [self.uid(each) for each in values]

    def _replace(self, dataset: Dataset, tag: Any) -> None:
        """By a dummy; of a sequence all values."""
        element = dataset[tag]
        if element.VR == "UI":
            self._map(element)
        elif element.VR != "SQ":
            vr = _first(element.VR)
            dataset[tag] = DataElement(tag, vr, DUMMIES[vr])
        else:
            for item in element.value:
                for each in list(item.keys()):
                    if each.is_private or not dictionary_has_tag(each):
                        del item[each]
                    else:
                        self._replace(item, each)


def _first(vr: str) -> str:
    """The first of several possible VRs (PS3.6), such as `US or SS`."""
    return vr.partition(" ")[0]


def _require_whole(file: IO[bytes]) -> None:
    """Raises InstanceError. pydicom reads a file that is cut off without an error."""

    def pread(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    size = os.fstat(file.fileno()).st_size
    read_instance(pread, size, keep=frozenset(), emit=lambda _: None, limits=LIMITS)
    file.seek(0)


def _tag_at(file: IO[bytes], is_little_endian: bool) -> int:
    """The tag at the position of the file, or 0 at its end; the position stays."""
    raw = file.read(4)
    file.seek(-len(raw), os.SEEK_CUR)
    if len(raw) < 4:
        return 0
    group, element = struct.unpack(ORDER[is_little_endian] + "HH", raw)
    return int(group) << 16 | int(element)


def _pixels(file: IO[bytes], syntax: Any) -> Iterator[bytes]:
    """The element with the pixels, which is at the position of the file, as it is."""
    start, size = file.tell(), os.fstat(file.fileno()).st_size

    def pread(offset: int, length: int) -> bytes:
        file.seek(offset)
        return file.read(length)

    order = ORDER[syntax.is_little_endian]
    header = 8 if syntax.is_implicit_VR else 12
    length = struct.unpack(order + "I", pread(start + header - 4, 4))[0]
    end = start + header + length
    if length == UNDEFINED:
        little = syntax.is_little_endian
        end = scan_items(pread, start + header, size, UNLIMITED, little=little).end + DELIMITER
    if end > size:
        raise CannotDeidentify("its pixels are cut off")
    file.seek(start)
    while start < end:
        piece = file.read(min(PIECE, end - start))
        start += len(piece)
        yield piece


def _meta(instance: Dataset, syntax: Any) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.SOPClassUID
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
