"""The verb `pull`: from another server into the folder of a store, and to a server."""

import json
import shutil
from urllib.parse import parse_qs, urlsplit

import clinic as world
import pytest
from fake_service import ScriptedHandler, served
from live_server import free_port, start_server

from streamsrv.cli import FAILED, USAGE, main

FILES = [world.file_of(each) for each in world.everything()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("source"), workers=1)
    world.store(f"{running.url}/studies", FILES)
    yield running
    running.end()


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("target"), workers=1)
    yield running
    running.end()


@pytest.fixture(params=["--data", "--to"])
def place(request, target, tmp_path, monkeypatch):
    """The words that name the target, which is empty."""
    monkeypatch.chdir(tmp_path)
    for study in studies_of(target):
        assert world.ask(f"{target.url}/studies/{study}", "DELETE").status == 204
    shutil.rmtree(target.data / "runs", ignore_errors=True)
    return (request.param, str(target.data if request.param == "--data" else target.url))


def studies_of(server):
    found = world.ask(f"{server.url}/studies")
    return [study["0020000D"]["Value"][0] for study in (found.json() if found.body else [])]


def files_of(server):
    return {
        payload
        for study in studies_of(server)
        for _, payload in world.ask(
            f"{server.url}/studies/{study}",
            Accept='multipart/related; type="application/dicom"; transfer-syntax=*',
        ).parts()
    }


def pull(capsys, *words):
    capsys.readouterr()
    code = main(["pull", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_file_arrives_as_it_was_stored(source, target, place, capsys):
    code, report = pull(capsys, "--from", source.url, *place)
    size = sum(map(len, FILES))
    counts = {"studies": 3, "unchanged": 0, "replaced at the source": 0, "stored": len(FILES)}
    counts |= {"already stored": 0, "gone": 0}
    assert (code, report) == (0, {"ok": True, **counts, "failed": 0, "bytes": size, "failures": []})
    assert files_of(target) == set(FILES)
    code, report = pull(capsys, "--from", source.url, *place)
    assert (code, report["unchanged"], report["stored"], report["bytes"]) == (0, 3, 0, 0)


def test_a_later_run_brings_what_is_new(source, target, place, capsys):
    words = ("--from", source.url, *place, "--query", f"StudyInstanceUID={world.CT_STUDY}")
    assert pull(capsys, *words)[1]["stored"] == 3
    new = world.ct(3)
    new.SOPInstanceUID = new.file_meta.MediaStorageSOPInstanceUID = f"{world.CT_SERIES}.4"
    world.store(f"{source.url}/studies", [world.file_of(new)])
    try:
        code, report = pull(capsys, *words)
        assert (code, report["stored"], report["bytes"]) == (0, 1, len(world.file_of(new)))
        assert files_of(target) == {*FILES[:3], world.file_of(new)}
    finally:
        at = f"{source.url}/studies/{world.CT_STUDY}/series/{world.CT_SERIES}/instances/{new.SOPInstanceUID}"
        assert world.ask(at, "DELETE").status == 204


def test_what_is_there_already_is_a_success(source, target, place, capsys, tmp_path):
    world.store(f"{target.url}/studies", FILES[:2])
    code, report = pull(capsys, "--from", source.url, *place)
    assert (code, report["stored"], report["already stored"]) == (0, len(FILES) - 2, 2)
    assert files_of(target) == set(FILES)


# --- instances that the source replaces ---


@pytest.fixture(scope="module")
def replacing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replacing")
    running = start_server(folder, "--on-duplicate", "replace", workers=1)
    yield running
    running.end()


def other(number, name):
    made = world.ct(number)
    made.PatientName = name
    return world.file_of(made)


def test_a_later_run_brings_what_was_replaced(replacing, target, place, capsys, monkeypatch):
    flag, _ = place
    monkeypatch.setenv("STREAMSRV_ON_DUPLICATE", "replace" if flag == "--data" else "refuse")
    source = replacing.url if flag == "--data" else f"{replacing.origin}/v1"
    world.store(f"{replacing.url}/studies", FILES[:3])
    words = ("--from", source, *place)
    assert pull(capsys, *words)[1]["stored"] == 3
    assert pull(capsys, *words)[1]["unchanged"] == 1
    news = [other(2, f"new for {flag}"), other(3, f"new for {flag}")]
    world.store(f"{replacing.url}/studies", news)
    code, report = pull(capsys, *words)
    assert (report["replaced at the source"], report["unchanged"]) == (2, 0)
    if flag == "--data":
        assert (code, report["stored"], report["failed"]) == (0, 2, 0)
        assert files_of(target) == {FILES[0], *news}
        assert pull(capsys, *words)[1]["unchanged"] == 1
    else:  # the target keeps its own, and each run says so
        for _ in range(2):
            assert (code, report["failed"], report["already stored"]) == (1, 2, 0)
            assert "the target keeps its own" in report["failures"][0]
            code, report = pull(capsys, *words)
        assert files_of(target) == set(FILES[:3])


# --- services that fail ---


class ScriptedSource(ScriptedHandler):
    """One study, `files` by SOP Instance UID, in one series. `script` has the behaviour of each retrieve;
    then all succeed."""

    def do_GET(self):
        parts = urlsplit(self.path)
        names, query = parts.path.strip("/").split("/"), parse_qs(parts.query)
        if names[0] == "changefeed":
            self.answer(*(self.server.latest if len(names) > 1 else self.server.changes))
            return
        self.server.asked.append(parts.path)
        if query:
            self.search(names, int(query.get("offset", ["0"])[0]), int(query["limit"][0]))
            return
        wanted = [names[5]] if len(names) == 6 else list(self.server.files)
        behaviour = self.server.script.pop(0) if self.server.script else "whole"
        if behaviour == "patience":  # growing waits would take minutes
            self.answer(429, "text/plain", b"no", ("Retry-After", "0"))
            return
        if isinstance(behaviour, int):
            self.answer(behaviour, "text/plain", b"no")
            return
        if behaviour == "closed":
            self.close_connection = True
            return
        files = [self.server.files[uid] for uid in wanted]
        if isinstance(behaviour, str) and behaviour.startswith("without "):
            files = [self.server.files[uid] for uid in wanted if uid != behaviour.split()[1]]
        body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % each for each in files)
        kind = 'multipart/related; type="application/dicom"; boundary=x'
        self.answer(200, kind, body + b"--x--", sent=behaviour if isinstance(behaviour, float) else 1.0)

    def search(self, names, offset, limit):
        uids = {"0020000D": "1.2"} if len(names) == 1 else {"0020000D": "1.2", "0020000E": "1.2.3"}
        found = [{tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}]
        if len(names) > 1:
            found = [each | {"00080018": {"Value": [uid]}} for each in found for uid in self.server.listed]
        page = found if self.server.ignores_offset else found[offset : offset + limit]
        self.answer(200, "application/dicom+json", json.dumps(page).encode())


@pytest.fixture
def scripted():
    with served(ScriptedSource) as service:
        service.asked, service.script, service.ignores_offset = [], [], False
        service.latest = service.changes = 404, "text/plain", b"no"
        service.files = {uid: FILES[number] for number, uid in enumerate(world.CT_INSTANCES)}
        service.listed = list(service.files)
        yield service


SERIES = "/studies/1.2/series/1.2.3"
ALL = [f"{SERIES}/instances/{uid}" for uid in world.CT_INSTANCES]


@pytest.mark.parametrize("place", ["--data"], indirect=True)
@pytest.mark.parametrize(
    ("script", "retrieved"),
    [
        ([0.5], ["/studies/1.2", *ALL[1:]]),  # one instance arrived before the answer ended
        ([0.1, 0.5], ["/studies/1.2", SERIES, *ALL[1:]]),
        ([503, 502], ["/studies/1.2"] * 3),
        (["patience"] * 8, ["/studies/1.2"] * 9),
        ([500, 406], ["/studies/1.2", SERIES, *ALL]),
        ([f"without {world.CT_INSTANCES[1]}"], ["/studies/1.2", ALL[1]]),
        ([500, 500, 0.5, 0.9], ["/studies/1.2", SERIES, ALL[0], ALL[0], *ALL]),
    ],
)
def test_what_is_missing_is_asked_for_again(scripted, target, place, capsys, script, retrieved):
    scripted.script += script
    code, report = pull(capsys, "--from", scripted.url, *place)
    assert (code, report["stored"], report["failed"]) == (0, 3, 0)
    assert files_of(target) == set(FILES[:3])
    assert [path for path in scripted.asked if not path.endswith(("/instances", "/studies"))] == retrieved


def test_each_failure_has_its_reason(scripted, target, place, capsys):
    one, two, three = world.CT_INSTANCES
    scripted.files[two] = b"no DICOM"
    scripted.listed.append("1.2.3.9")
    scripted.script += ["whole", 404]
    code, report = pull(capsys, "--from", scripted.url, *place, "--retries", "0")
    assert (code, report["stored"], report["gone"], report["failed"]) == (1, 2, 1, 1)
    (failure,) = report["failures"]
    assert two in failure
    assert "not a DICOM" in failure
    assert files_of(target) == {scripted.files[one], scripted.files[three]}
    scripted.files[two], scripted.listed = FILES[1], [one, two, three]
    code, report = pull(capsys, "--from", scripted.url, *place)
    assert (code, report["stored"], report["failed"]) == (0, 1, 0)
    assert files_of(target) == set(FILES[:3])


def test_a_run_that_broke_off_goes_on(scripted, target, place, capsys):
    scripted.script += [0.5, "closed"]
    assert main(["pull", "--from", scripted.url, *place, "--retries", "0"]) == FAILED
    capsys.readouterr()
    scripted.asked.clear()
    code, report = pull(capsys, "--from", scripted.url, *place)
    assert (code, report["stored"], report["already stored"]) == (0, 2, 0)
    assert files_of(target) == set(FILES[:3])


@pytest.mark.parametrize("place", ["--data"], indirect=True)
@pytest.mark.parametrize("status", [401, 403])
def test_a_source_that_refuses_everything(scripted, place, capsys, status):
    scripted.script += [status] * 9
    code = main(["pull", "--from", scripted.url, *place])
    assert code == FAILED
    out, err = capsys.readouterr()
    assert f"HTTP status {status}" in out + err


@pytest.mark.parametrize("place", ["--data"], indirect=True)
def test_a_search_without_pages(scripted, target, place, capsys):
    scripted.ignores_offset = True
    assert pull(capsys, "--from", scripted.url, *place)[1]["stored"] == 3
    scripted.listed = [f"1.2.3.{number}" for number in range(200)]
    code, report = pull(capsys, "--from", scripted.url, *place)
    assert code == 1
    assert "ignores `offset`" in report["failures"][0]


@pytest.mark.parametrize("place", ["--data"], indirect=True)
@pytest.mark.parametrize(
    "feed",
    [
        (200, "text/html", b"<html>"),
        (403, "text/plain", b"no"),
        (200, "application/json", b'{"sequence": "x"}'),
    ],
)
def test_a_source_without_a_change_feed(scripted, place, capsys, feed):
    scripted.latest = feed
    words = ("--from", scripted.url, *place)
    assert pull(capsys, *words)[1]["stored"] == 3
    assert pull(capsys, *words)[0] == 0


def change(sequence):
    body = json.dumps({"sequence": sequence, "timestamp": "2026-01-01T00:00:00Z"})
    return 200, "application/json", body.encode()


@pytest.mark.parametrize("place", ["--data"], indirect=True)
@pytest.mark.parametrize(
    ("sequence", "sentence"), [(9, "again and again"), ("x", "no list of changes"), (None, "no list of")]
)
def test_a_change_feed_without_pages(scripted, place, capsys, sequence, sentence):
    words = ["pull", "--from", scripted.url, *place]
    scripted.latest = change(8)
    assert main(words) == 0
    scripted.latest = change(9)
    page = [{"sequence": sequence, "action": "create", "timestamp": "2026-01-01T00:00:00Z"}]
    scripted.changes = 200, "application/json", json.dumps(page).encode()
    assert main(words) == FAILED
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("place", ["--data"], indirect=True)
@pytest.mark.parametrize(
    ("before", "latest"),
    [((204, "application/json", b""), change(9)), (change(9), change(12)), (change(9), change(4))],
)
def test_changes_that_are_lost_and_everything_again(scripted, place, capsys, before, latest):
    scripted.latest = before
    words = ["pull", "--from", scripted.url, *place]
    assert main(words) == 0
    scripted.latest = latest  # and its changes are gone
    assert main(words) == 0
    assert "--again brings" in capsys.readouterr().err
    scripted.files = {uid: other(number, "new") for number, uid in enumerate(scripted.files, 1)}
    code, report = pull(capsys, *words[1:], "--again")
    assert (code, report["already stored"]) == (0, 3)
    scripted.changes = 200, "application/json", b"[]"
    assert main(words) == 0
    assert "--again" not in capsys.readouterr().err


def test_a_target_that_does_not_answer(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--from", source.url, "--to", f"http://127.0.0.1:{free_port()}/v2", "--retries", "0"]
    assert main(["pull", *words]) == FAILED
    assert "the service that stores" in capsys.readouterr().err


def test_wrong_words(source, target, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, code, sentence in (
        (("--to", target.url, "--parallel", "0"), USAGE, "at least 1"),
        (("--to", target.url, "--query", "limit=3"), USAGE, "not a condition"),
        (("--data", tmp_path / "empty"), FAILED, "store.toml"),
        (("--to", target.url, "--run", tmp_path / "no" / "x"), FAILED, "unable to open"),
    ):
        assert main(["pull", "--from", source.url, *map(str, words)]) == code
        assert sentence in capsys.readouterr().err
    run = tmp_path / "run"
    assert main(["pull", "--from", source.url, "--to", target.url, "--run", str(run), "--quiet"]) == 0
    assert main(["pull", "--from", target.url, "--to", source.url, "--run", str(run)]) == USAGE
    assert "give another file" in capsys.readouterr().err


def test_a_key_for_each_side(source, target, tmp_path, capsys):
    shutil.copytree(source.data, tmp_path / "locked" / "data")
    locked = start_server(tmp_path / "locked", "--auth", "required", workers=1)
    for name, rights in (("reader", "search,read"), ("writer", "store")):
        assert main(["key", "add", name, "--data", str(locked.data), "--rights", rights]) == 0
        (tmp_path / name).write_text(capsys.readouterr().out)
    words = ("--from", locked.url, "--token-file", tmp_path / "reader", "--to", locked.url)
    code, report = pull(capsys, *words, "--to-token-file", tmp_path / "writer", "--run", tmp_path / "run")
    assert (code, report["stored"], report["already stored"]) == (0, 0, len(FILES))
    assert locked.end() == 0
