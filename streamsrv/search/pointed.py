"""The search that is asked most often: the studies of a patient, or of an accession number.

Strategy: one parameter, of one value, of a study attribute that has an inverted list. Then there is nothing
to plan: one look finds the studies in the list and their rows, as of one moment, so that a list which holds
the whole value decides, and the text of each row goes out as it is. That is less than half the work of a
query, a walk and a page, and says the same. What is more than that, or finds more than a few studies, is not
for this module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import orjson

from streamsrv.dicom.instance import JsonDataset
from streamsrv.query.attributes import BY_TAG, Level, QueryAttribute
from streamsrv.query.budget import BRIEF_PORTION, BRIEF_ROWS
from streamsrv.query.conditions import path_of
from streamsrv.query.matching import OneOf, matcher_of
from streamsrv.query.terms import elements_at
from streamsrv.query.values import NORMAL_BYTES
from streamsrv.search.attributes import returned_anyway
from streamsrv.search.parameters import PARAMETERS, SearchLimits
from streamsrv.store import Index, InstanceKey, LevelRow, fill, reader_of, study_date
from streamsrv.wire.answers import Request
from streamsrv.wire.resources import ResourceLevel, Target

# Text of which one value is one form, and is no list of values.
_VRS = frozenset(("LO", "SH"))
_NAMES = 256  # of parameters that are remembered


class _Point(NamedTuple):
    """What a parameter's name leads to."""

    row: QueryAttribute
    read: Callable[[LevelRow], JsonDataset]


@functools.lru_cache(maxsize=_NAMES)
def _point(name: str) -> _Point | None:
    path = path_of(name) if name not in PARAMETERS else None
    row = BY_TAG.get(path[0]) if path and len(path) == 1 else None
    if row is None or row.level is not Level.STUDY or not row.indexed or row.vr not in _VRS:
        return None
    if not returned_anyway(row.path, Level.STUDY):
        return None
    return _Point(row, reader_of(Level.STUDY, (row.tag,)))


def pointed(index: Index, request: Request, target: Target, limits: SearchLimits) -> list[bytes] | None:
    """The texts of all studies that match, in the order of a search; None if it is another kind of search.
    BadRequest as any search of the kind."""
    if target.level is not ResourceLevel.STUDY or len(request.query) != 1:
        return None
    name, text = request.query[0]
    point = _point(name) if len(name) < 100 else None
    if point is None or limits.rows < BRIEF_ROWS or not BRIEF_PORTION <= limits.default <= limits.most:
        return None
    matcher = matcher_of(name, point.row.vr, text)
    if not isinstance(matcher, OneOf) or len(matcher.forms) != 1:
        return None
    (form,) = matcher.forms
    found = index.listed(point.row, form, BRIEF_PORTION)
    if found is None:
        return None
    if len(form) * 4 >= NORMAL_BYTES:  # of a long value the list holds the beginning
        elements = ((study, row, elements_at(point.read(row), point.row.path)) for study, row in found)
        found = [(study, row) for study, row, values in elements if matcher.matches(values)]
    if len(found) > 1:
        found.sort(key=lambda each: study_date(each[1]), reverse=True)  # stable: by UID within a day
    base = orjson.dumps(request.base_url)[1:-1]
    return [fill(row.answer, base, InstanceKey(study, "", "")) for study, row in found]
