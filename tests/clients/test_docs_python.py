"""Every `python` block of the documentation runs against a real server, page by page, in its order. If a
`text` block follows a block, it is the output."""

import contextlib
import io
import itertools
import re

import clinic as world
import pytest
from live_server import ROOT, start_server

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED_ORIGIN = "http://127.0.0.1:8943"


def blocks_of(path):
    """(number of the line, code, output or None) of each python block."""
    text = path.read_text(encoding="utf-8")
    blocks = [(text.count("\n", 0, found.start()) + 2, *found.groups()) for found in BLOCK.finditer(text)]
    for (line, language, code), (_, following, output) in itertools.pairwise([*blocks, (0, "", "")]):
        if language == "python":
            yield line, code, output if following == "text" else None


PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if any(blocks_of(path))]


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("docs") / "server")
    world.store(f"{running.url}/studies", map(world.file_of, world.everything()))
    yield running.origin
    running.end()


# wsidicom gives pydicom no way to fetch the ICC profile by its BulkDataURI.
@pytest.mark.filterwarnings("ignore:No bulk data URI handler provided:UserWarning")
@pytest.mark.filterwarnings("ignore:builtin type [Ss]wig:DeprecationWarning")  # of SimpleITK
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_blocks_of_a_page_run(origin, path):
    names = {"__name__": path.stem}
    for line, code, output in blocks_of(path):
        printed = io.StringIO()
        place = f"{path.relative_to(ROOT)}:{line}"
        with contextlib.redirect_stdout(printed):
            exec(compile(code.replace(PRINTED_ORIGIN, origin), place, "exec"), names)
        if output is not None:
            assert printed.getvalue() == output, place


def test_there_are_blocks():
    assert len(list(blocks_of(ROOT / "docs" / "howto" / "python.md"))) >= 7
