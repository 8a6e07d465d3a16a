"""Every `python` block of the documentation runs against a real server, page by page, in its order. If a
`text` block follows a block, it is the output. So do the `sh` blocks of pages about moving data."""

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess

import clinic as world
import pytest
import store_kinds
from live_server import ROOT, environment, executable, start_server
from PIL import Image
from shell_blocks import blocks_of as blocks_of_shell

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED_ORIGIN = "http://127.0.0.1:8943"


def blocks_of(path):
    """(number of the line, code, output or None) of each python block."""
    text = path.read_text(encoding="utf-8")
    blocks = [(text.count("\n", 0, found.start()) + 2, *found.groups()) for found in BLOCK.finditer(text)]
    for (line, language, code), (_, following, output) in itertools.pairwise([*blocks, (0, "", "")]):
        if language == "python":
            yield line, code, output if following == "text" else None


MIGRATE = ROOT / "docs" / "howto" / "migrate.md"  # its commands come first
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if any(blocks_of(path)) and path != MIGRATE]


@pytest.fixture(scope="module")
def clinic_server(tmp_path_factory):
    """A server with the studies of the clinic. Pages may add to them."""
    running = start_server(tmp_path_factory.mktemp("docs") / "server")
    world.store(f"{running.url}/studies", map(world.file_of, world.everything()))
    yield running
    running.end()


@pytest.fixture(scope="module")
def origin(clinic_server):
    return clinic_server.origin


def real(text, urls):
    for printed, url in urls.items():
        text = text.replace(printed, url)
    return text


# wsidicom gives pydicom no way to fetch the ICC profile by its BulkDataURI.
@pytest.mark.filterwarnings("ignore:No bulk data URI handler provided:UserWarning")
@pytest.mark.filterwarnings("ignore:builtin type [Ss]wig:DeprecationWarning")  # of SimpleITK
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_python_blocks_of_a_page_run(origin, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python_blocks(path, {PRINTED_ORIGIN: origin})


def run_python_blocks(path, urls):
    names = {"__name__": path.stem}
    for line, code, output in blocks_of(path):
        printed = io.StringIO()
        place = f"{path.relative_to(ROOT)}:{line}"
        with contextlib.redirect_stdout(printed):
            exec(compile(real(code, urls), place, "exec"), names)
        if output is not None:
            assert printed.getvalue() == output, place


def test_there_are_python_blocks():
    assert len(list(blocks_of(ROOT / "docs" / "howto" / "python.md"))) >= 7
    assert "python.md" in {path.name for path in PAGES}


def test_the_commands_of_migrate_run(origin, server, tmp_path):
    """From an old server and from folders into a new one."""
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "01234567-89ab-cdef-0123-456789abcdef").write_bytes(world.file_of(world.ct(1)))
    text = "".join(block.text for block in blocks_of_shell(MIGRATE))
    urls = {"https://old.example": origin, PRINTED_ORIGIN: server.origin}
    folders = {"--data data": f"--data '{server.data}'", "/var/lib/orthanc/db-v6": str(archive)}
    run_shell(
        real(text, urls | folders), tmp_path, HOME=str(tmp_path), **store_kinds.variables_of(server.data)
    )
    run_python_blocks(MIGRATE, urls)


def run_shell(text, folder, **variables):
    """In one shell, in which `streamsrv` is the command of this checkout."""
    verb = f'streamsrv() {{ {shlex.join(executable())} "$@"; }}'
    script = f"set -e\n{verb}\n{text}"
    subprocess.run(["sh", "-c", script], cwd=folder, check=True, env=os.environ | environment() | variables)


@pytest.mark.embedded("the page rescues the segments of a folder")
def test_the_commands_of_get_data_out_run(clinic_server, tmp_path):
    """All of its `sh` blocks, one after the other in one shell."""
    page = ROOT / "docs" / "howto" / "get-data-out.md"
    urls = {PRINTED_ORIGIN: clinic_server.origin, "DATA=data": f"DATA='{clinic_server.data}'"}
    place = store_kinds.variables_of(clinic_server.data)
    run_shell(real("".join(block.text for block in blocks_of_shell(page)), urls), tmp_path, **place)
    stored = {uid: world.file_of(world.ct(number)) for number, uid in enumerate(world.CT_INSTANCES, 1)}
    files = tmp_path / "files" / world.CT_STUDY / world.CT_SERIES
    assert {path.stem: path.read_bytes() for path in files.iterdir()} == stored
    assert (tmp_path / "one.dcm").read_bytes() in stored.values()
    assert len((tmp_path / "frame.raw").read_bytes()) == 48 * 64 * 2
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (64, 48)
    exported = {path.read_bytes() for path in tmp_path.glob("everything/**/*.dcm")}
    assert set(stored.values()) < exported
    thorax = {path.read_bytes() for path in tmp_path.glob("thorax/P-1/*/1/*.dcm")}
    assert set(stored.values()) <= thorax < exported
    assert {
        path.stem: path.read_bytes() for path in tmp_path.glob("rescued/**/*.dcm")
    }.items() >= stored.items()
    assert (tmp_path / "medium" / "DICOMDIR").exists()
    research = list(tmp_path.glob("research/**/*.dcm"))
    assert len(research) == 3
    assert not [path for path in research if b"Doe^Jane" in path.read_bytes()]
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert {each["00080018"]["Value"][0] for each in metadata} >= set(stored)


def test_the_commands_of_share_a_study_run(clinic_server, tmp_path, capfd):
    page = ROOT / "docs" / "howto" / "share-a-study.md"
    blocks = [block.text for block in blocks_of_shell(page) if block.text.startswith("streamsrv share")]
    assert len(blocks) == 2
    words = {"--data data": f"--data '{clinic_server.data}'", "1.2.840.113619.2.1": world.CT_STUDY}
    run_shell(real("".join(blocks), words), tmp_path, **store_kinds.variables_of(clinic_server.data))
    link, listed, ended = capfd.readouterr().out.splitlines()
    assert link.startswith("https://pacs.example/")
    assert world.CT_STUDY in listed
    assert ended == "0 links ended"


def test_the_commands_of_follow_changes_run(clinic_server, tmp_path):
    page = ROOT / "docs" / "howto" / "follow-changes.md"
    token = tmp_path / "token"
    token.write_text("a-token")
    urls = {PRINTED_ORIGIN: clinic_server.origin, "DATA=data": f"DATA='{clinic_server.data}'"}
    urls["/etc/streamsrv/pacs.token"] = str(token)
    place = store_kinds.variables_of(clinic_server.data)
    run_shell(real("".join(block.text for block in blocks_of_shell(page)), urls), tmp_path, **place)
    changes, following = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("changes", "next"))
    stored = {each["sopInstanceUid"] for each in changes}
    assert stored >= set(world.CT_INSTANCES)
    assert not {each["sequence"] for each in changes} & {each["sequence"] for each in following}
    assert json.loads((tmp_path / "latest.json").read_text())["metadata"]
    assert json.loads((tmp_path / "day.json").read_text()) == []
    events = (tmp_path / "events.txt").read_text()
    assert all(f'"sopInstanceUid":"{uid}"' in events for uid in stored)
    more = (tmp_path / "more.txt").read_text()
    assert "id: " in more
    assert '"action":"create"' not in more
