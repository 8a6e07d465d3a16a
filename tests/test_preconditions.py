"""Preconditions of what changes something (RFC 9110 13), asked of a real server."""

import pytest
from hostile_files import instance, new_uid
from hostile_world import DICOM, World, converse, head, post

ANY = "Accept: */*"
OLD = "Thu, 01 Jan 2015 00:00:00 GMT"
SOON = "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    yield world
    world.end()


@pytest.fixture
def stored(world):
    """The UIDs of one instance, and its bytes."""
    uids = {level: new_uid() for level in ("study", "series", "instance")}
    payload = instance(**uids)
    assert world.answered(post(DICOM, payload)).status == 200
    return uids, payload


def paths(uids):
    study = f"/v2/studies/{uids['study']}"
    series = f"{study}/series/{uids['series']}"
    return {"study": study, "series": series, "instance": f"{series}/instances/{uids['instance']}"}


def delete(world, path, *headers):
    return world.answered(head(f"DELETE {path}", *headers)).status


def status_of(world, request):
    return int(converse(world.origin, request).split()[1])


LEVELS = pytest.mark.parametrize("level", ["study", "series", "instance"])


@LEVELS
def test_what_is_still_the_same_is_deleted(world, stored, level):
    path = paths(stored[0])[level]
    for accept in (ANY, "Accept: multipart/related; type=application/dicom"):
        etag = world.get(path, accept).headers["etag"]
        for known in ('"x"', f"W/{etag}", f'"{etag}"', "etag"):
            assert delete(world, path, accept, f"If-Match: {known}") == 412
    assert delete(world, path, accept, f'If-Match: "x", {etag}', "Range: bytes=0-0") == 204
    assert delete(world, path, accept, f"If-Match: {etag}") == 404
    assert delete(world, path, "If-Match: *") == 404


@LEVELS
def test_what_has_changed_is_not_deleted(world, stored, level):
    uids, _ = stored
    path = paths(uids)[level]
    etag = world.get(path, ANY).headers["etag"]
    if level == "instance":
        assert delete(world, path) == 204
        assert world.answered(post(DICOM, instance(**uids))).status == 200  # the same bytes, another record
    else:
        assert world.store(instance(study=uids["study"], series=uids["series"])).status == 200
    refused = world.answered(head(f"DELETE {path}", ANY, f"If-Match: {etag}"))
    assert refused.status == 412
    assert refused.problem() == "none of the entity tags in If-Match is that of the representation"
    assert world.get(path).status == 200
    assert delete(world, path, "If-Match: *") == 204


@LEVELS
def test_if_none_match_of_a_deletion(world, stored, level):
    path = paths(stored[0])[level]
    etag = world.get(path, ANY).headers["etag"]
    for known in ("*", etag, f'"x", W/{etag}'):
        assert delete(world, path, ANY, f"If-None-Match: {known}") == 412
    assert delete(world, path, ANY, 'If-None-Match: "x"') == 204


def test_dates(world, stored):
    path = paths(stored[0])["instance"]
    assert delete(world, path, f"If-Unmodified-Since: {OLD}") == 412
    assert world.get(path, f"If-Unmodified-Since: {OLD}").status == 412
    assert world.get(path, f"If-Unmodified-Since: {SOON}").status == 200
    assert world.get(path, "If-Unmodified-Since: yesterday").status == 200
    assert world.get(path, f"If-Unmodified-Since: {OLD}", "If-Match: *").status == 200
    # Studies and series have no date, and what they are not modified since nobody knows.
    assert world.get(paths(stored[0])["study"], f"If-Unmodified-Since: {OLD}").status == 200
    assert delete(world, path, f"If-Unmodified-Since: {SOON}", f"If-Modified-Since: {SOON}") == 204


def test_an_accept_that_is_meant_for_the_answer_does_not_count(world, stored):
    path = paths(stored[0])["instance"]
    etag = world.get(path, ANY).headers["etag"]
    assert delete(world, path, "Accept: application/json", 'If-Match: "x"') == 412
    assert delete(world, path, "Accept: application/json", f"If-Match: {etag}") == 204


def test_stores(world, stored):
    uids, _ = stored
    there, other = paths(uids)["study"], f"/v2/studies/{new_uid()}"

    def store(path, *headers):
        payload = instance(study=path[12:] or new_uid())
        request = post(DICOM, payload, *headers, "Connection: close", line=f"POST {path}")
        return status_of(world, request)

    assert store(other, "If-Match: *") == 412
    assert store(there, "If-None-Match: *") == 412
    assert store(there, 'If-Match: "x"') == 412
    assert store(there, ANY, f"If-Match: {world.get(there, ANY).headers['etag']}") == 200
    assert store(other, "If-None-Match: *") == 200
    assert world.get(there).body.count(b"DICM") == 2
    # Of all studies together the representation is that of a search.
    whole = world.get("/v2/studies").headers["etag"]
    assert store("/v2/studies", f"If-None-Match: {whole}") == 412
    assert store("/v2/studies", f"If-Match: {whole}") == 200
    assert store("/v2/studies", f"If-Match: {whole}") == 412


@pytest.mark.parametrize("kind", ["", "/metadata", "/bulkdata", "?includefield=all"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reading(world, stored, kind, method):
    """412 before 304 and 206; `*` and the tag itself change nothing."""
    path = paths(stored[0])["study"] + kind
    if kind.startswith("?"):
        path = "/v2/studies" + kind
    reply = world.get(path)
    if reply.status == 404:
        assert kind == "/bulkdata"
        assert world.get(path, "If-Match: *").status == 404
        return
    etag = reply.headers["etag"]

    def status(*headers):
        return status_of(world, head(f"{method} {path}", "Connection: close", *headers))

    assert status("If-Match: *") == status(f'If-Match: "x" , {etag}') == 200
    assert status('If-Match: "x"') == status(f"If-Match: W/{etag}") == 412
    assert status('If-Match: "x"', f"If-None-Match: {etag}") == 412
    assert status('If-Match: "x"', "Range: bytes=0-0") == 412
    assert status(f"If-Match: {etag}", f"If-None-Match: {etag}") == 304
