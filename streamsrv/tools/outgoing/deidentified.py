"""De-identified copies of instances: the Basic Application Level Confidentiality Profile of DICOM PS3.15
Annex E, with its options.

Strategy: the package dicom-anonymizer has Table E.1-1, the action for each attribute; profile.py has the
columns of the options. This module applies the actions on all levels of sequences, because that package does
it on the top level only. The pixels are copied from the file as they are.

Rules
- Beyond the table are removed: private attributes, attributes that the dictionary does not know, dates and
  times, group lengths, and overlays as a whole. Names of persons are replaced, and UIDs that the standard
  does not define are mapped.
- UIDs and Patient IDs are mapped with a secret (HMAC), so the same one is the same in every run of an export.
  The dates of one patient move by the same number of days.
- An attribute of another VR than its own may hide a sequence. It is removed if the table says so, else the
  instance is refused.
- Preamble and file meta information are new.
- An instance that cannot be read as a whole is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, repeater_has_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from streamsrv import __version__
from streamsrv.dicom.explicit import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from streamsrv.dicom.frames import UNDEFINED, scan_items
from streamsrv.dicom.part10 import read_instance
from streamsrv.dicom.window import ReadLimits
from streamsrv.errors import StreamsrvError
from streamsrv.tools.outgoing.content import CannotClean, Cleaning, clean_codes, clean_content, clean_graphics
from streamsrv.tools.outgoing.profile import (
    BEYOND,
    CHARACTERISTICS,
    CODES,
    CONTENT,
    DESCRIPTIONS,
    DESCRIPTORS,
    GRAPHICS,
    MODIFIED_DATES,
    NEVER_DATES,
    OPTIONS,
    PATIENT_TEXTS,
    RETAIN_DATES,
    RETAIN_UIDS,
    SAFE_PRIVATE,
    STRUCTURED,
    TIMES,
    Profile,
    table_of_actions,
)
from streamsrv.tools.outgoing.safe_private import SafeAttributes
from streamsrv.tools.outgoing.values import DUMMIES, TEXT_VRS, each_value, first_vr, kept_words, moved

PIECE = 1 << 20
LONGEST_DEFLATED = 256 << 20  # bytes of a deflated file: it is inflated in memory
UNLIMITED = 1 << 62
DELIMITER = 8  # bytes
LIMITS = ReadLimits(max_attributes=0)
PLAIN = Profile(frozenset())
# UIDs that name no instance: a class, a coding scheme, a context group, a mapping resource.
CLASSES = frozenset(
    ("SOPClassUID", "ReferencedSOPClassUID", "RelatedGeneralSOPClassUID", "OriginalSpecializedSOPClassUID")
) | {
    *("CodingSchemeUID", "ContextUID", "MappingResourceUID", "ContextGroupExtensionCreatorUID"),
    *("SOPClassesInStudy", "SOPClassesSupported", "AvailableTransferSyntaxUID"),
}
PATIENT_NAME, PATIENT_ID = 0x00100010, 0x00100020
ITEM = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # the tag of an item, in both byte orders
UID_BYTES = re.compile(rb"\d+(\.\d+){3,}\0?")
OVERLAYS = range(0x6000, 0x6100)  # groups
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
ORDER = {True: "<", False: ">"}
REGISTERED = "1.2.840.10008."
# Dates move by a year to eleven years.
LEAST_DAYS, DAYS = 366, 3650
# SOP Classes and modalities whose pixels often have text: captured screens, ultrasound.
CAPTURES = "1.2.840.10008.5.1.4.1.1.7"
TEXTED = frozenset(("US", "IVUS", "OT", "SC"))
# Remarks about the pixels of an instance. Files with one of them but the last need a look. METADATA is the
# remark of a file that has no other of those.
BURNED_IN, OVERLAID = "with burned-in text", "with an overlay in the pixels"
OFTEN_TEXT = "of a kind that often has burned-in text"
METADATA = "with comments or EXIF in its JPEG frames"
UNKNOWN = "that do not say whether they have burned-in text"
REMARKS = (BURNED_IN, OVERLAID, OFTEN_TEXT, METADATA, UNKNOWN)
# Segments of JPEG (T.81 B.1.1.3) without text: JFIF, profiles of colours, SPIFF, Adobe.
PLAIN_SEGMENTS = frozenset((0xE0, 0xE2, 0xE8, 0xEE))
COMMENT, SCAN = 0xFE, 0xDA
MOST_SEGMENTS = 256
UNDEFINED_LENGTH = b"\xff" * 4


class CannotDeidentify(Exception):
    """This instance is not exported."""


class Subject(NamedTuple):
    """The patient of an instance: the pseudonym, the days by which dates move, and the private attributes
    that stay."""

    pseudonym: str
    days: int
    safe: SafeAttributes | None


class Deidentifier:
    """Threads share it."""

    def __init__(self, secret: bytes, profile: Profile = PLAIN) -> None:
        """Raises SettingsError."""
        self._secret = secret
        self._options, self._words = profile
        self._kept = {keyword for option in self._options for keyword in OPTIONS[option].keeps.split()}
        self._texts = DESCRIPTIONS if DESCRIPTORS in self._options else frozenset()
        if self._texts and CHARACTERISTICS in self._options:
            self._texts |= PATIENT_TEXTS
        table = table_of_actions()
        self._actions = {tag: letter for tag, letter in table.items() if len(tag) == 2}
        self._groups = [tag for tag in table if len(tag) == 4]
        # Values of files in use break rules of their VR; each would be a warning.
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

    def uid(self, old: str) -> str:
        """A UID below 2.25 (PS3.5 B.2)."""
        if not old or old.startswith(REGISTERED) or RETAIN_UIDS in self._options:
            return old
        return f"2.25.{int.from_bytes(self._digest('uid', old)[:16], 'big') >> 1}"

    def patient(self, old: str, study: str) -> str:
        """The pseudonym for a Patient ID. Without one each study is another patient."""
        return f"P{self._digest('patient', old or f'of study {study}').hex()[:16].upper()}"

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.digest(self._secret, f"{kind}\0{value}".encode(), hashlib.sha256)

    # A file

    def copy(self, source: Path, write: Callable[[bytes], None]) -> str:
        """Calls `write` with the pieces of the de-identified file. Returns one of REMARKS, or "" if the
        pixels have no text. Raises CannotDeidentify."""
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
        except (StreamsrvError, CannotClean, InvalidDicomError, RecursionError, struct.error) as fault:
            detail = getattr(fault, "detail", None) or str(fault)
            raise CannotDeidentify(f"it cannot be de-identified: {detail}") from fault

    def _head(self, file: IO[bytes]) -> tuple[bytes, Any, str]:
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
        remark = _remark(instance) if has_pixels or "PixelData" in instance else ""
        if has_pixels and syntax.is_encapsulated and remark in ("", UNKNOWN) and _has_metadata(file):
            remark = METADATA
        self._clean(instance, self._subject(instance))
        self._mark(instance)
        if "EncapsulatedDocument" in instance and "EncapsulatedDocumentLength" in instance:
            instance.EncapsulatedDocumentLength = len(instance.EncapsulatedDocument)
        instance.file_meta = _meta(instance, syntax)
        instance.preamble = bytes(128)
        head = io.BytesIO()
        pydicom.dcmwrite(head, instance, enforce_file_format=True)
        return head.getvalue(), syntax if has_pixels else None, remark

    def _subject(self, instance: Dataset) -> Subject:
        study = str(instance.get("StudyInstanceUID", ""))
        pseudonym = self.patient(str(instance.get("PatientID") or ""), study)
        number = int.from_bytes(self._digest("days", pseudonym)[:8], "big")
        safe = SafeAttributes(instance) if SAFE_PRIVATE in self._options else None
        return Subject(pseudonym, LEAST_DAYS + number % DAYS, safe)

    def _mark(self, instance: Dataset) -> None:
        """PS3.15 E.1.1 and C.7.1.1."""
        codes = [("113100", "Basic Application Confidentiality Profile")]
        codes += [OPTIONS[option][:2] for option in sorted(self._options)]
        instance.PatientIdentityRemoved = "YES"
        instance.DeidentificationMethod = f"streamsrv {__version__}, DICOM PS3.15 Annex E"
        instance.DeidentificationMethodCodeSequence = [_code(*each) for each in codes]
        changed = {RETAIN_DATES: "UNMODIFIED", MODIFIED_DATES: "MODIFIED"}
        options = [text for option, text in changed.items() if option in self._options]
        instance.LongitudinalTemporalInformationModified = options[0] if options else "REMOVED"

    # Attributes

    def _clean(self, dataset: Dataset, subject: Subject) -> None:
        own = str(dataset.get("PatientID") or "")
        safe = subject.safe.in_dataset(dataset) if subject.safe else set()
        for tag in list(dataset.keys()):
            if tag.is_private and int(tag) in safe:
                self._keep_private(dataset, tag, subject)
                continue
            if tag.is_private or not tag.element or not (dictionary_has_tag(tag) or repeater_has_tag(tag)):
                del dataset[tag]
                continue
            raw = dataset.get_item(tag)
            vr = first_vr(raw.VR if raw.VR not in (None, "UN") else dataset[tag].VR)
            if tag in (PATIENT_NAME, PATIENT_ID):
                pseudonym = self.patient(own, "") if own else subject.pseudonym
                dataset[tag] = DataElement(tag, vr, pseudonym)
            else:
                known = first_vr(dictionary_VR(tag))
                is_hidden = vr != known and (vr == "UN" or known == "SQ")
                letter = self._letter(tag, known if is_hidden else vr)
                if is_hidden and letter != "X":
                    raise CannotDeidentify(f"it cannot be de-identified: {tag} has the VR {vr}, not {known}")
                self._apply(letter, dataset, tag, vr, subject)

    def _keep_private(self, dataset: Dataset, tag: Any, subject: Subject) -> None:
        """A safe private attribute stays, with other UIDs; the items of a sequence are clean. Its VR may be
        unknown."""
        element = dataset[tag]
        if element.VR == "UI":
            self._map(element)
        elif element.VR == "SQ":
            for item in element.value:
                self._clean(item, subject)
        elif element.VR == "UN" and element.value and element.value.startswith(ITEM):
            del dataset[tag]
        elif element.VR == "UN" and element.value and UID_BYTES.fullmatch(element.value):
            new = self.uid(element.value.rstrip(b"\0").decode()).encode()
            element.value = new + b"\0" * (len(new) % 2)

    def _letter(self, tag: Any, vr: str) -> str:
        """X: remove, Z: empty, D: a dummy, U: another UID, K: keep, with the items of a sequence clean. In
        lower case: keep the cleaned value; if none is left, as in upper case."""
        keyword = keyword_for_tag(tag)
        found = self._actions.get((tag.group, tag.element)) or self._letter_beyond(tag, keyword, vr)
        is_date = vr in ("DA", "DT", "TM") or keyword in TIMES
        if is_date and keyword not in NEVER_DATES and MODIFIED_DATES in self._options and vr != "OB":
            return found.lower() if vr in ("DA", "DT") else "K"
        if is_date and keyword not in NEVER_DATES and RETAIN_DATES in self._options:
            return "K"
        if keyword in self._kept:
            return "K"
        if keyword in self._texts or (keyword in CONTENT and STRUCTURED in self._options):
            return found.lower()
        if keyword == "GraphicAnnotationSequence" and GRAPHICS in self._options:
            return "x"
        return found

    def _letter_beyond(self, tag: Any, keyword: str, vr: str) -> str:
        """For an attribute that has no row of its own."""
        if any((tag.group & m, tag.element & n) == (g, e) for g, e, m, n in self._groups):
            return "X"
        if tag.group in OVERLAYS or keyword in BEYOND or vr in ("DA", "DT", "TM"):
            return "X"
        if vr == "UR" and keyword != "URNCodeValue":  # an address may have names and numbers in it
            return "X"
        if keyword == "TextValue":
            return "D"
        return {"PN": "D", "UI": "K" if keyword in CLASSES else "U"}.get(vr, "K")

    def _apply(self, letter: str, dataset: Dataset, tag: Any, vr: str, subject: Subject) -> None:
        if letter.islower() and self._is_cleaned(dataset, tag, vr, subject):
            return
        letter = letter.upper()
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
                self._clean(item, subject)

    def _is_cleaned(self, dataset: Dataset, tag: Any, vr: str, subject: Subject) -> bool:
        """Cleans a date, a text or a sequence. Returns whether something is left of it."""
        value: Any = dataset[tag].value
        try:
            if vr in ("DA", "DT"):
                left: list[Any] = each_value(value, lambda text: moved(text, subject.days))
            elif vr == "SQ":
                left = self._cleaned_items(keyword_for_tag(tag), value, subject)
            else:
                left = each_value(value, self._text) if vr in TEXT_VRS else []
        except ValueError:
            return False
        if left:
            dataset[tag] = DataElement(tag, vr, left if vr == "SQ" or len(left) > 1 else left[0])
        return bool(left)

    def _text(self, text: str) -> str:
        return kept_words(text, self._words)

    def _cleaned_items(self, keyword: str, items: Any, subject: Subject) -> list[Dataset]:
        def clean(item: Dataset) -> None:
            self._clean(item, subject)

        if keyword == "GraphicAnnotationSequence":
            return clean_graphics(items, clean)
        if keyword in CONTENT:
            return clean_content(items, Cleaning(self._options, clean, self._text))
        if keyword in CODES:
            return clean_codes(items, Cleaning(self._options, clean, self._text))
        for item in items:
            clean(item)
        return list(items)

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
            vr = first_vr(element.VR)
            dataset[tag] = DataElement(tag, vr, DUMMIES[vr])
        else:
            for item in element.value:
                for each in list(item.keys()):
                    if each.is_private or not dictionary_has_tag(each):
                        del item[each]
                    else:
                        self._replace(item, each)


def _remark(instance: Dataset) -> str:
    """One of REMARKS for an instance as it was stored, or ""."""
    burned_in = instance.get("BurnedInAnnotation") or ""
    if burned_in == "YES":
        return BURNED_IN
    if any(
        tag.group in OVERLAYS
        and tag.element == 0x102
        and instance[tag].value
        and tag.group << 16 | 0x3000 not in instance
        for tag in list(instance.keys())
    ):
        return OVERLAID
    if burned_in == "NO":
        return ""
    often = str(instance.get("SOPClassUID", "")).startswith(CAPTURES) or instance.get("Modality") in TEXTED
    return OFTEN_TEXT if often else UNKNOWN


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


def _has_metadata(file: IO[bytes]) -> bool:
    """Whether the first fragment of the pixels is JPEG with a comment, or an application segment that may
    have text. The pixels are at the position of the file, which stays."""
    start = file.tell()
    try:
        element = file.read(20)  # with the item of the Basic Offset Table (PS3.5 A.4)
        file.seek(int.from_bytes(element[16:], "little") + 8, os.SEEK_CUR)
        if element[8:12] != UNDEFINED_LENGTH or file.read(2) != b"\xff\xd8":
            return False
        for _ in range(MOST_SEGMENTS):
            segment = file.read(4)
            if len(segment) < 4 or segment[0] != 0xFF or segment[1] == SCAN:
                return False
            marker = segment[1]
            if marker == 0xFF:  # a fill byte
                file.seek(-3, os.SEEK_CUR)
                continue
            if marker == COMMENT or (marker & 0xF0 == 0xE0 and marker not in PLAIN_SEGMENTS):
                return True
            file.seek(int.from_bytes(segment[2:]) - 2, os.SEEK_CUR)
        return True
    finally:
        file.seek(start)


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
