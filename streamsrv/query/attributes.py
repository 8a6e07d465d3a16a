"""The table of searchable attributes (PS3.18 10.6, Tables 10.6.1-3 to 10.6.1-5 and 10.6.3-3 to 10.6.3-5), and
their keys in inverted lists: level, attribute, normal form.

Strategy: a row says to which level an attribute belongs, when answers hold it, and whether the index has an
inverted list of its values. The Part 10 reader returns KEEP. The index merges, stores and inverts attributes
with a row. The VR alone decides how values are compared (matching.py). An attribute without a row can be
matched and returned as well: it is read from the stored metadata, within a budget.

Rules
- Adding a row is enough for a new key.
- The tag of a nested attribute is a path ("00400275.00400009"). Of a sequence only the attributes with rows
  are kept.
- After a change of the table the index must be rebuilt: it holds TABLE_DIGEST, and another one is refused.
- The number of an attribute in a list is its tag, or a digest of its path.
- A normal form is cut, so a list may hold false matches and the stored row decides.
- A person name with several component groups is in its list once more as a whole: the words of a search may
  be in different groups.
- Every study has an entry in the list of study dates, an empty one if it has no valid date. Searches find
  studies in the reverse order of that list.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import zlib
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple, TypeVar

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.query.values import cut, normal_forms, sort_value, whole_name

T = TypeVar("T")

Path = tuple[str, ...]  # tags from the outermost sequence inwards

ORDERING = "00080020"  # StudyDate

_ABSENT: JsonElement = {}
_MOST_TERMS = 256  # of one attribute of one study or series; a scan finds further values


class Level(enum.IntEnum):
    STUDY = 0
    SERIES = 1
    INSTANCE = 2


class Position(NamedTuple):
    """A position in the order of a search: the sort value of a study, and UIDs down to the level of the
    search. A search may begin after it."""

    value: str | None
    study: str
    series: str | None = None
    instance: str | None = None


class Returned(enum.IntEnum):
    """When a result holds the attribute."""

    ALWAYS = 0  # even an empty value: type 2 of the standard's tables
    PRESENT = 1  # if there is a value
    ASKED = 2  # if includefield names it, or a matching key


@dataclass(frozen=True, slots=True)
class QueryAttribute:
    """`tag` may be a path. A `computed` attribute comes from the index, never from a dataset. A `required`
    one must be matchable (column "Required" of the standard's tables)."""

    level: Level
    tag: str
    keyword: str
    vr: str
    required: bool = False
    returned: Returned = Returned.ASKED
    indexed: bool = False
    computed: bool = False

    @property
    def path(self) -> Path:
        return tuple(self.tag.split("."))


def _rows(level: Level, table: str) -> list[QueryAttribute]:
    """Columns: tag, VR, keyword, then any of: required, always, present, indexed, computed."""
    rows = []
    for line in table.strip().splitlines():
        tag, vr, keyword, *marks = line.split()
        returned = next((each for each in Returned if each.name.lower() in marks), Returned.ASKED)
        flags = {name: name in marks for name in ("required", "indexed", "computed")}
        rows.append(QueryAttribute(level, tag, keyword, vr, returned=returned, **flags))
    return rows


# Patient attributes belong to the study: each study carries its own copy of them (PS3.4 C.6.2, study root).
_STUDY = """
00080005 CS SpecificCharacterSet always computed
00080020 DA StudyDate required always indexed
00080030 TM StudyTime required always indexed
00080050 SH AccessionNumber required always indexed
00080056 CS InstanceAvailability always computed
00080061 CS ModalitiesInStudy required always indexed computed
00080062 UI SOPClassesInStudy indexed computed
00080090 PN ReferringPhysicianName required always indexed
00080201 SH TimezoneOffsetFromUTC present
00081030 LO StudyDescription present indexed
00081060 PN NameOfPhysiciansReadingStudy
00081080 LO AdmittingDiagnosesDescription
00081190 UR RetrieveURL always computed
00100010 PN PatientName required always indexed
00100020 LO PatientID required always indexed
00100021 LO IssuerOfPatientID present
00100030 DA PatientBirthDate always indexed
00100032 TM PatientBirthTime
00100040 CS PatientSex always
00101010 AS PatientAge
00101020 DS PatientSize
00101030 DS PatientWeight
00102160 SH EthnicGroup
00104000 LT PatientComments
0020000D UI StudyInstanceUID required always computed
00200010 SH StudyID required always indexed
00201206 IS NumberOfStudyRelatedSeries always computed
00201208 IS NumberOfStudyRelatedInstances always computed
"""

_SERIES = """
00080005 CS SpecificCharacterSet always computed
00080021 DA SeriesDate
00080031 TM SeriesTime
00080056 CS InstanceAvailability always computed
00080060 CS Modality required always indexed
00080070 LO Manufacturer
00080080 LO InstitutionName indexed
00080201 SH TimezoneOffsetFromUTC present
00081010 SH StationName
0008103E LO SeriesDescription present
00081040 LO InstitutionalDepartmentName
00081050 PN PerformingPhysicianName
00081070 PN OperatorsName
00081090 LO ManufacturerModelName
00081190 UR RetrieveURL always computed
00180015 CS BodyPartExamined
00181030 LO ProtocolName
0020000D UI StudyInstanceUID always computed
0020000E UI SeriesInstanceUID required always computed
00200011 IS SeriesNumber required always indexed
00200052 UI FrameOfReferenceUID indexed
00200060 CS Laterality
00201209 IS NumberOfSeriesRelatedInstances always computed
00400244 DA PerformedProcedureStepStartDate required present indexed
00400245 TM PerformedProcedureStepStartTime required present indexed
00400275 SQ RequestAttributesSequence present
00400275.00400009 SH ScheduledProcedureStepID required present indexed
00400275.00401001 SH RequestedProcedureID required present indexed
"""

_INSTANCE = """
00080005 CS SpecificCharacterSet always computed
00080016 UI SOPClassUID required always computed
00080018 UI SOPInstanceUID required always computed
00080056 CS InstanceAvailability always computed
00080201 SH TimezoneOffsetFromUTC present
00081190 UR RetrieveURL always computed
00083002 UI AvailableTransferSyntaxUID always computed
0020000D UI StudyInstanceUID always computed
0020000E UI SeriesInstanceUID always computed
00200013 IS InstanceNumber required always
00280008 IS NumberOfFrames present
00280010 US Rows present
00280011 US Columns present
00280100 US BitsAllocated present
"""

QUERY_ATTRIBUTES: tuple[QueryAttribute, ...] = (
    *_rows(Level.STUDY, _STUDY),
    *_rows(Level.SERIES, _SERIES),
    *_rows(Level.INSTANCE, _INSTANCE),
)

# The top-level tags of NewInstance.attributes, which the Part 10 reader returns.
KEEP: frozenset[str] = frozenset(row.path[0] for row in QUERY_ATTRIBUTES if not row.computed)

# The version of the forms in the lists, which is part of the digest.
_FORMS = 2
TABLE_DIGEST = hashlib.blake2b(repr((_FORMS, QUERY_ATTRIBUTES)).encode(), digest_size=8).hexdigest()

# The first row wins: the row of the highest level.
BY_TAG: dict[str, QueryAttribute] = {row.tag: row for row in reversed(QUERY_ATTRIBUTES)}


@functools.cache
def attributes_at(level: Level) -> tuple[QueryAttribute, ...]:
    return tuple(row for row in QUERY_ATTRIBUTES if row.level is level)


def term_prefix(row: QueryAttribute) -> bytes:
    number = int(row.tag, 16) if len(row.tag) == 8 else zlib.crc32(row.tag.encode()) | 0x8000_0000
    return bytes((row.level,)) + number.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class StudyOrder:
    """The order of the list of an indexed study attribute, by the sort values. Studies without one come last;
    equal studies come in the order of their UIDs."""

    attribute: QueryAttribute
    descending: bool = False

    @property
    def tag(self) -> str:
        return self.attribute.tag

    @property
    def start(self) -> bytes:
        """The begin of all keys of the list."""
        return term_prefix(self.attribute)

    def value(self, attributes: JsonDataset) -> str | None:
        return sort_value(self.attribute.vr, attributes.get(self.attribute.tag, _ABSENT))

    def is_ahead(self, value: str | None, study: str, of: Position) -> bool:
        """Whether a study comes after a position."""
        if value == of.value:
            return study > of.study
        if value is None or of.value is None:
            return value is None
        return (value < of.value) is self.descending

    def sorted(self, found: list[tuple[str | None, str, T]]) -> list[tuple[str | None, str, T]]:
        """`found` holds sort values, studies in ascending order, and anything."""
        valued = [each for each in found if each[0] is not None]
        valued.sort(key=itemgetter(0), reverse=self.descending)  # stable: by UID where values are equal
        return valued + [each for each in found if each[0] is None]


NEWEST = StudyOrder(BY_TAG[ORDERING], descending=True)

_INDEXED = {
    level: tuple((row, term_prefix(row)) for row in attributes_at(level) if row.indexed) for level in Level
}


def elements_at(attributes: JsonDataset, path: Path) -> list[JsonElement]:
    """Returns the elements at a path, in all items of its sequences; an empty one for an item without it."""
    datasets = [attributes]
    for tag in path[:-1]:
        datasets = [
            item
            for each in datasets
            if tag in each
            for item in each[tag].get("Value", ())
            if isinstance(item, dict)
        ]
    return [each.get(path[-1], _ABSENT) for each in datasets]


def forms_of(row: QueryAttribute, attributes: JsonDataset) -> set[str]:
    if len(row.path) == 1:
        values = attributes.get(row.tag, {}).get("Value", ())
    else:
        elements = elements_at(attributes, row.path)
        values = [value for element in elements for value in element.get("Value", ())]
    if row.tag == ORDERING:
        values = values[:1]
    found = {form for value in values[:_MOST_TERMS] for form in normal_forms(row.vr, value)}
    if row.vr == "PN":
        found |= {name for value in values[:_MOST_TERMS] if "=" in (name := whole_name(value))}
    return found or ({""} if row.tag == ORDERING else found)


def terms(level: Level, attributes: JsonDataset) -> set[bytes]:
    return {start + cut(form) for row, start in _INDEXED[level] for form in forms_of(row, attributes)}
