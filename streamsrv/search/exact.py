"""The exact lookup: the studies with one value of one attribute, such as a patient ID.

Strategy: the search has one parameter with one value, of a study attribute that has an inverted list. One
transaction finds the studies in the list and their rows, and each row holds its text. This takes less than
half as long as the general search and gives the same answer. Other searches, and those that find more than a
few studies, are left to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import orjson

from streamsrv.dicom.instance import JsonDataset
from streamsrv.query.attributes import BY_TAG, NEWEST, Level, QueryAttribute, elements_at
from streamsrv.query.budget import BRIEF_PORTION, BRIEF_ROWS
from streamsrv.query.conditions import path_of
from streamsrv.query.matching import OneOf, matcher_of
from streamsrv.query.values import NORMAL_BYTES
from streamsrv.search.attributes import returned_anyway
from streamsrv.search.parameters import PARAMETERS, SearchLimits
from streamsrv.store import Index, InstanceKey, LevelRow, fill, reader_of, value_reader
from streamsrv.wire.answers import Request
from streamsrv.wire.resources import ResourceLevel, Target

# A value of these has one normal form and is never a list of values.
_VRS = frozenset(("LO", "SH"))
_date_of = value_reader(NEWEST)


class _ExactKey(NamedTuple):
    row: QueryAttribute
    read: Callable[[LevelRow], JsonDataset]


@functools.lru_cache(maxsize=256)
def _exact_key(name: str) -> _ExactKey | None:
    path = path_of(name) if name not in PARAMETERS else None
    row = BY_TAG.get(path[0]) if path and len(path) == 1 else None
    if row is None or row.level is not Level.STUDY or not row.indexed or row.vr not in _VRS:
        return None
    if not returned_anyway(row.path, Level.STUDY):
        return None
    return _ExactKey(row, reader_of(Level.STUDY, (row.tag,)))


def exact_matches(index: Index, request: Request, target: Target, limits: SearchLimits) -> list[bytes] | None:
    """Returns the texts of all matching studies in the order of a search, or None if the search is of another
    kind. Raises BadRequest."""
    if target.level is not ResourceLevel.STUDY or len(request.query) != 1:
        return None
    name, text = request.query[0]
    key = _exact_key(name) if len(name) < 100 else None
    if key is None or limits.rows < BRIEF_ROWS or not BRIEF_PORTION <= limits.default <= limits.most:
        return None
    matcher = matcher_of(name, key.row.vr, text)
    if not isinstance(matcher, OneOf) or len(matcher.forms) != 1:
        return None
    (form,) = matcher.forms
    found = index.listed(key.row, form, BRIEF_PORTION)
    if found is None:
        return None
    if len(form) * 4 >= NORMAL_BYTES:  # the list holds the begin of a long value
        elements = ((study, row, elements_at(key.read(row), key.row.path)) for study, row in found)
        found = [(study, row) for study, row, values in elements if matcher.matches(values)]
    if len(found) > 1:
        found = [
            (study, row)
            for _, study, row in NEWEST.sorted([(_date_of(row), study, row) for study, row in found])
        ]
    base = orjson.dumps(request.base_url)[1:-1]
    return [fill(row.answer, base, InstanceKey(study, "", "")) for study, row in found]
