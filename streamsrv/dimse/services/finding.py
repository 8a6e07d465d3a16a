"""One C-FIND (PS3.4 C.4.1, PS3.7 9.1.2): the keys become a search as HTTP has it, each match a response.

Strategy: a thread takes some matches from the search and encodes their responses. The loop sends these, and
the socket of the peer sets the pace. So a search of 100,000 matches holds one portion of them.

A patient is no level of the index. Its studies come one after the other in the order of patient IDs, and are
joined.

Rules of this file
- The keys of the levels above may be missing: each query is a relational one (PS3.4 C.4.1.2.2.1).
- A key that no answer can have (of a lower level, of storage media) is returned without value. The status of
  each match is then FF01.
- A search that reads too much is refused with A700, and a wrong key with C000.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator, Iterator
from urllib.parse import quote

import orjson

from streamsrv.audit.entries import Event
from streamsrv.dicom.instance import JsonDataset
from streamsrv.dicom.json.values import text, whole
from streamsrv.dimse.protocol.commands import DimseStatus, response
from streamsrv.dimse.protocol.identifiers import (
    Identifier,
    MatchWriter,
    RequestKey,
    writer_of,
)
from streamsrv.dimse.protocol.models import InformationModel
from streamsrv.dimse.protocol.pdus import data_pdus
from streamsrv.dimse.rooms import OperationOutcome
from streamsrv.dimse.services.query_operation import QueryOperation
from streamsrv.dimse.services.uid_keys import search_of
from streamsrv.errors import BadRequest, NotDicom
from streamsrv.query.attributes import BY_TAG, Level, StudyOrder
from streamsrv.query.conditions import Query
from streamsrv.query.levels import is_below
from streamsrv.query.matching import MatchingOptions
from streamsrv.web.access.principal import Right

PORTION = 128  # matches that a thread takes at a time
PATIENT_ID = "00100020"
# NumberOfPatientRelatedStudies, -Series, -Instances, and the number in each study that they add up.
PATIENT_COUNTS = {"00201200": None, "00201202": "00201206", "00201204": "00201208"}
# Keys that are never compared, and have no value here: URLs, storage media, the time zone of the query.
_NOT_COMPARED = frozenset(("00081190", "00880130", "00880140", "00080201"))
_EVERYTHING = 1 << 62


class FindOperation(QueryOperation):
    name = "C-FIND"
    right = Right.SEARCH

    async def finish(self) -> OperationOutcome:
        """Sends a response for each match. Returns the final one."""
        refused = self._refused()
        if refused is not None:
            return refused
        try:
            identifier = await self._identifier()
            if identifier.level not in self._model.levels:
                return self._wrong_level()
            return await self._answered(identifier)
        except (BadRequest, NotDicom) as error:
            return OperationOutcome(DimseStatus.CANNOT_UNDERSTAND, error.detail)
        except OSError:
            raise  # the connection
        except Exception as error:
            return self._talk.rooms.failure(self._talk.peer, error, self.name)

    def _wrong_level(self) -> OperationOutcome:
        levels = ", ".join(self._model.levels)
        return OperationOutcome(DimseStatus.MISMATCH, f"(0008,0052) is none of {levels}")

    async def _answered(self, identifier: Identifier) -> OperationOutcome:
        talk, context = self._talk, self._context
        wanted = Wanted(identifier, self._model, talk.options)
        talk.rooms.note(talk.peer, Event.QUERY, query=wanted.spelled, detail="C-FIND")
        writer = writer_of(identifier, context.transfer_syntax, talk.title)
        status = DimseStatus.PENDING_WITHOUT_OPTIONAL_KEYS if wanted.lacks_keys else DimseStatus.PENDING
        head = talk.message(context.number, response(self.command, status, has_dataset=True))
        searches = talk.rooms.searches(talk.peer.principal)
        found = wanted.written(searches.texts(wanted.query, talk.peer.address), writer)
        loop = asyncio.get_running_loop()

        def portion() -> tuple[bytes, bool]:
            matches = list(itertools.islice(found, PORTION))
            pieces: list[bytes] = []
            for match in matches:
                pieces += head, *data_pdus(context.number, match, talk.longest)
            return b"".join(pieces), len(matches) < PORTION

        is_last = False
        while not self._cancelled:
            if is_last:
                return OperationOutcome(DimseStatus.SUCCESS)
            content, is_last = await loop.run_in_executor(talk.rooms.threads, portion)
            await talk.send(content)
        await loop.run_in_executor(talk.rooms.threads, found.close)
        return OperationOutcome(DimseStatus.CANCEL)


class Wanted:
    """The search of one identifier. Raises BadRequest, which names the key."""

    def __init__(self, identifier: Identifier, model: InformationModel, options: MatchingOptions) -> None:
        level = model.index_level(identifier.level)
        self._of_patients = identifier.level == "PATIENT"
        keys = [key for key in identifier.keys if self._is_known(key, level)]
        self.lacks_keys = len(keys) < len(identifier.keys)
        self._counts = [key.path[0] for key in identifier.keys if key.path[0] in PATIENT_COUNTS]
        searched = [(key.name, key.text) for key in keys if key.path[0] not in PATIENT_COUNTS]
        self.query: Query = search_of(level, searched, options)
        if self._of_patients:
            self.query = self.query.page(_EVERYTHING, StudyOrder(BY_TAG[PATIENT_ID]), None)
        compared = "&".join(f"{name}={quote(value, safe=',*:-^=')}" for name, value in searched if value)
        self.spelled = f"{model.name} {identifier.level}?{compared}".removesuffix("?")

    def _is_known(self, key: RequestKey, level: Level) -> bool:
        tag = key.path[0]
        if tag in _NOT_COMPARED:
            return False
        if tag in PATIENT_COUNTS:
            return self._of_patients
        if self._of_patients and not key.text and tag[:4] != "0010":
            return False
        return bool(key.text) or not is_below(key.path, level)

    def written(self, found: Iterator[bytes], writer: MatchWriter) -> Generator[bytes, None, None]:
        """The datasets of the matches: at the level of patients those of one patient ID are one."""
        if not self._of_patients:
            yield from map(writer.dataset_of_text, found)
            return
        studies: Iterator[JsonDataset] = map(orjson.loads, found)
        for _, group in itertools.groupby(studies, key=lambda study: text(study, PATIENT_ID)):
            yield writer.dataset(self._patient(group))

    def _patient(self, studies: Iterator[JsonDataset]) -> JsonDataset:
        first = next(studies)
        counts = dict.fromkeys(self._counts, 0)
        for study in itertools.chain((first,), studies):
            for tag in counts:
                counted = PATIENT_COUNTS[tag]
                counts[tag] += whole(study, counted, 0) if counted else 1
        return first | {tag: {"vr": "IS", "Value": [number]} for tag, number in counts.items()}
