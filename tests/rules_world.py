"""Studies of several hospitals, and requests of a principal with a rule without a socket."""

import struct
from dataclasses import dataclass, field

from hostile_files import element, instance, padded

from streamsrv.errors import RequestError
from streamsrv.query.rules import Rule
from streamsrv.server import actions
from streamsrv.settings import Settings
from streamsrv.web.actions import CONDITIONS, check_preconditions, compute
from streamsrv.wire.answers import Literal, Request, Span, resolved
from streamsrv.wire.resources import parse_query, target_of

# Attributes of a made file, by the names of its arguments.
TAGS = {
    "date": (0x00080020, "DA"),
    "accession": (0x00080050, "SH"),
    "modality": (0x00080060, "CS"),
    "institution": (0x00080080, "LO"),
    "referrer": (0x00080090, "PN"),
    "description": (0x00081030, "LO"),
    "name": (0x00100010, "PN"),
    "patient": (0x00100020, "LO"),
    "number": (0x00200013, "IS"),
}
ROWS = COLUMNS = 16


def key_of(study, series=1, number=1):
    return f"1.2.{study}", f"1.2.{study}.{series}", f"1.2.{study}.{series}.{number}"


def file_of(key, fill=1, **values):
    """A Part 10 file of 16 x 16 pixels."""
    values = {"modality": "CT", "date": "20240102", "name": "Doe^Jane", "number": "1"} | values
    study, series, uid = key
    more = {
        TAGS[name][0]: element(*TAGS[name], padded(str(value), b" "))
        for name, value in values.items()
        if value is not None
    }
    words = ((0x00280002, 1), (0x00280010, ROWS), (0x00280011, COLUMNS), (0x00280100, 16), (0x00280101, 12))
    for tag, value in (*words, (0x00280102, 11), (0x00280103, 0)):
        more[tag] = element(tag, "US", struct.pack("<H", value))
    more[0x00280004] = element(0x00280004, "CS", b"MONOCHROME2 ")
    more[0x00420011] = element(0x00420011, "OB", bytes([fill]) * 4_000)
    more[0x7FE00010] = element(0x7FE00010, "OW", bytes([fill, 1]) * (ROWS * COLUMNS))
    return instance(more, instance=uid, study=study, series=series)


@dataclass
class Reply:
    status: int
    headers: list = field(default_factory=list)
    body: bytes = b""

    @property
    def text(self):
        """Everything that the client reads."""
        return repr(self.headers).encode() + self.body


class Side:
    """A store as one principal sees it; None is one without a rule."""

    def __init__(self, store, pool, rule: Rule | None = None, **settings):
        self.store = store
        self._actions = actions(store, Settings(**settings), pool, store).restricted(rule, True)

    def ask(self, path, method="GET", **headers):
        place, _, query = path.partition("?")
        names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        request = Request(method, place, parse_query(query), names, "http://h/v2", 2)
        try:
            answer = resolved(compute(self._actions, request, target_of(place)))
            body = bytes_of(answer, read=method != "HEAD")
        except RequestError as error:
            return Reply(error.status, [(type(error).__name__, error.detail)])
        return Reply(answer.status, answer.headers, body)

    def put(self, *files, study=None, **headers):
        """The reply to store transactions of one instance each, as JSON."""
        place = f"/v2/studies/{study}" if study else "/v2/studies"
        names = {"content-type": "application/dicom"}
        names |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
        request, target = Request("POST", place, (), names, "http://h/v2", 2), target_of(place)
        replies = []
        for file in files:
            ingest = self._actions.ingest(request, target)
            try:
                if not CONDITIONS.isdisjoint(names):
                    check_preconditions(self._actions, request, target)
                ingest.begin()
                ingest.feed(file)
                answer = self._actions.stored(ingest.finish(), request)
            except RequestError as error:
                ingest.abort()
                replies.append(Reply(error.status, [(type(error).__name__, error.detail)]))
            else:
                replies.append(Reply(answer.status, answer.headers, bytes_of(answer)))
        return replies if len(files) > 1 else replies[0]


def bytes_of(answer, *, read=True):
    """The content of an answer, which is given back."""
    try:
        return b"".join(piece for part in answer.plan for piece in _pieces(answer, part)) if read else b""
    finally:
        if answer.release:
            answer.release()


def _pieces(answer, part):
    if isinstance(part, Literal):
        yield part.payload
    elif isinstance(part, Span):
        descriptor, offset = answer.file_at(part.segment, part.offset)
        with open(descriptor, "rb", closefd=False, buffering=0) as source:
            source.seek(offset)
            yield source.read(part.length)
    else:
        yield from part.chunks(0, part.length)
