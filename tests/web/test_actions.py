"""streamsrv/web/actions.py: preconditions of what changes something, by stand-ins for the rooms below."""

import pytest

from streamsrv.errors import NotAcceptable, NotFound, PreconditionFailed
from streamsrv.web.actions import Actions, check_preconditions, compute
from streamsrv.wire.answers import Answer, Request, resolved
from streamsrv.wire.conditional import evaluate
from streamsrv.wire.resources import target_of

ETAG = '"abc"'


class Rooms:
    """Answers with `answer`, or raises it, and keeps what it was asked."""

    def __init__(self, answer=None):
        self.answer = answer
        self.asked = []
        self.deleted = []
        self.released = 0

    def retrieve(self, request, target):
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        if request.headers.get("accept") == "application/json":
            raise NotAcceptable("not that", ())
        if self.answer is not None:
            return self.answer
        built = Answer(200, release=self.release)
        return evaluate(request, built, ETAG)

    def release(self):
        self.released += 1

    def delete(self, *uids):
        self.deleted.append(uids)
        return 1

    def actions(self):
        return Actions(self.retrieve, self.retrieve, self.delete, None, None)


def request(method="DELETE", path="/v2/studies/1.2", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, path, (("accept", "text/html"),), named, "http://h/v2", 2)


def check(rooms, asked):
    check_preconditions(rooms.actions(), asked, target_of(asked.path))


def test_without_conditions_nothing_is_asked():
    rooms = Rooms()
    check(rooms, request(if_modified_since="x", range="bytes=0-0"))
    assert rooms.asked == []


def test_what_is_asked_is_what_a_get_would_get():
    rooms = Rooms()
    check(rooms, request(if_match=ETAG, accept="*/*", accept_encoding="gzip", range="bytes=0-0", host="h"))
    (asked,) = rooms.asked
    assert (asked.method, asked.query) == ("HEAD", ())
    assert asked.headers == {"if-match": ETAG, "accept": "*/*", "accept-encoding": "gzip"}
    assert rooms.released == 1


@pytest.mark.parametrize("method", ["DELETE", "POST"])
@pytest.mark.parametrize(
    ("headers", "holds"),
    [
        ({"if_match": ETAG}, True),
        ({"if_match": "*"}, True),
        ({"if_match": '"x"'}, False),
        ({"if_none_match": '"x"'}, True),
        ({"if_none_match": ETAG}, False),
        ({"if_none_match": "*"}, False),
        ({"if_match": ETAG, "if_none_match": ETAG}, False),
        ({"if_match": ETAG, "accept": "application/json"}, True),
        ({"if_match": '"x"', "accept": "application/json"}, False),
    ],
)
def test_conditions(method, headers, holds):
    rooms = Rooms()
    if holds:
        check(rooms, request(method, **headers))
    else:
        with pytest.raises(PreconditionFailed):
            check(rooms, request(method, **headers))
    assert rooms.released == 1


@pytest.mark.parametrize("answer", [Answer(204), Answer(200, [("Vary", "Accept")], (), None)])
def test_what_has_no_tag_matches_none(answer):
    """A search that finds nothing, or too much to be held."""
    check(Rooms(answer), request("POST", "/v2/studies", if_match="*"))
    check(Rooms(answer), request("POST", "/v2/studies", if_none_match=ETAG))
    with pytest.raises(PreconditionFailed, match="no entity tag"):
        check(Rooms(answer), request("POST", "/v2/studies", if_match=ETAG))


def test_what_is_not_there():
    """RFC 9110 13.2.1: a deletion is 404 whatever the conditions; a store makes it be there."""
    rooms = Rooms(NotFound("nothing"))
    for name in ("if_match", "if_none_match", "if_unmodified_since"):
        with pytest.raises(NotFound):
            check(rooms, request(**{name: "*"}))
    check(rooms, request("POST", if_none_match="*"))
    with pytest.raises(PreconditionFailed):
        check(rooms, request("POST", if_match="*"))


def test_a_deletion_looks_first():
    rooms, path = Rooms(), "/v2/studies/1.2"
    with pytest.raises(PreconditionFailed):
        resolved(compute(rooms.actions(), request(if_match='"x"'), target_of(path)))
    assert rooms.deleted == []
    assert resolved(compute(rooms.actions(), request(if_match=ETAG), target_of(path))).status == 204
    assert rooms.deleted == [("1.2", None, None)]
