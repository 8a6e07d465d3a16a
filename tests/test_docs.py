"""The reference pages are held against the code: a verb, flag or route that is not documented fails
here, and so does a documented one that does not exist."""

import argparse
import ast
import re
from http import HTTPStatus

import pytest
from live_server import ROOT

from streamsrv import cli, config
from streamsrv.wire import resources

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

DOCS = ROOT / "docs"


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text):
    """The rows of all tables, as lists of cells without their code marks. `\\|` is a bar inside a cell."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            yield [cell.strip().replace("\\|", "|").replace("`", "") for cell in cells]


def links(text):
    return re.findall(r"\]\((?!https?:)([^)#]+)", text)


# --- verbs and flags ---


def flags_of(verb):
    """The long flags of the verb's own parsers, without those that are settings."""
    parser = argparse.ArgumentParser(add_help=False)
    cli.functions_of(verb).add_arguments(parser)
    nested = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    parsers = [parser, *(each for action in nested for each in action.choices.values())]
    actions = [action for each in parsers for action in each._actions]
    flags = {flag for action in actions for flag in action.option_strings if flag.startswith("--")} - {
        "--help"
    }
    if verb in ("serve", "settings"):
        names = {config.flag(name) for name in config.FIELDS}
        assert {f"--{name}" for name in names} <= flags
        flags -= {f"--{no}{name}" for name in names for no in ("", "no-")}
    return flags


@pytest.fixture(scope="module")
def cli_sections():
    """Verb -> the text of its section."""
    parts = re.split(r"^## `streamsrv ([\w-]+)`\n", page("cli.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_verb_has_a_section(cli_sections):
    assert set(cli_sections) == set(cli.VERBS)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_first_page_names_every_verb(name):
    (cell,) = [row[1] for row in rows((ROOT / name).read_text(encoding="utf-8")) if "(docs/cli.md)" in row[0]]
    assert set(re.split(r"[,、]\s*", cell)) == set(cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_flag_stands_in_the_table_of_its_verb(cli_sections, verb):
    table = [row[0].split(" ")[0] for row in rows(cli_sections[verb]) if row[0] != "flag"]
    assert sorted(table) == sorted(flags_of(verb))


# --- routes ---


@pytest.mark.parametrize(
    "route", [*resources.ROUTES, *resources.UNVERSIONED], ids=lambda route: route.template
)
def test_every_route_is_documented(route):
    table = [row for row in rows(page("api.md")) if row[0] == (route.template or "/")]
    assert len(table) == 1, route.template
    _, methods, representation = table[0][:3]
    assert set(methods.split()) == set(route.methods)
    assert representation == route.representation


def test_no_route_is_documented_that_does_not_exist():
    templates = {route.template or "/" for route in (*resources.ROUTES, *resources.UNVERSIONED)}
    documented = {row[0] for row in rows(page("api.md")) if row[0].startswith("/")}
    assert documented == templates


# --- all pages ---

PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in links(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_that_a_page_names_is_there(path):
    """`tests/test_x.py`, `streamsrv/store/`: a path in code marks exists."""
    named = re.findall(
        r"`((?:streamsrv|codecs|tests|perf|conf|docs)/[\w./-]*)`", path.read_text(encoding="utf-8")
    )
    for name in named:
        assert (ROOT / name).exists() or name.startswith("perf/results"), name


def test_the_index_lists_every_page():
    linked = {(DOCS / target).resolve() for target in links(page("index.md"))}
    pages = {path for path in PAGES if path.is_relative_to(DOCS) and "notes" not in path.parts}
    assert pages - {DOCS / "index.md"} <= linked


def settings_files():
    for path in PAGES:
        blocks = re.findall(r"^```toml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
        yield from ((path, text) for text in blocks)


@pytest.mark.parametrize(("path", "text"), [*settings_files()], ids=lambda value: getattr(value, "name", ""))
def test_settings_in_pages_are_accepted(path, text, tmp_path):
    (tmp_path / "streamsrv.toml").write_text(text)
    assert config.from_toml(tmp_path / "streamsrv.toml")


# --- troubleshooting ---


def texts_of_source():
    """All texts of the source, and the constant parts of its f-strings."""
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "streamsrv").rglob("*.py")]
    nodes = (node for module in modules for node in ast.walk(module))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_every_message_of_troubleshooting_is_one_of_the_server():
    text = page("troubleshooting.md")
    of_browsers = text[text.index("## Viewers on another origin") : text.index("## The command line")]
    cells = [row[1] for row in marked_rows(text.replace(of_browsers, "")) if row[0].isdigit()]
    messages = [found[1] for cell in cells if (found := re.match(r"`([^`]+)`", cell))]
    assert len(messages) > 25
    texts = [*texts_of_source(), *(status.phrase for status in HTTPStatus)]
    for message in messages:
        assert any(message in text for text in texts) or message.startswith("streamsrv "), message


def marked_rows(text):
    """The rows of all tables, with code marks."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


# --- reliability ---


def rows_of_reliability():
    """(first cell, tests in the last cell) of each row of its tables."""
    for line in (DOCS / "reliability.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[-1] != "test" and not cells[-1].startswith("---"):
            yield cells[0], re.findall(r"`(tests/[\w/]+\.py)`", cells[-1])


@pytest.mark.parametrize(("fault", "tests"), [*rows_of_reliability()])
def test_every_row_of_reliability_names_tests(fault, tests):
    assert tests, fault
    for name in tests:
        assert re.search(r"^def test_|^    def test_", (ROOT / name).read_text(encoding="utf-8"), re.M), name


def test_soak_runs_every_long_form():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^SOAK_TESTS := (.*)$", makefile.replace("\\\n", " "), re.MULTILINE)
    listed = set(listed.split())
    long = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^SOAK = ", path.read_text(encoding="utf-8"), re.M)
    }
    assert long <= listed, long - listed
    assert {name for _, tests in rows_of_reliability() for name in tests} >= long - {
        "tests/test_operations.py"
    }
