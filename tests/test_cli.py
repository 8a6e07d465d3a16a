"""The verbs, their flags and their exit codes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import ROOT, environment, start_server

from streamsrv import __version__, cli, config, samples, verbs
from streamsrv.cli import FAILED, LOCKED, USAGE, VERBS, main
from streamsrv.config import FIELDS
from streamsrv.settings import TABLES
from streamsrv.store.maintenance.check import Finding, Severity
from streamsrv.store.maintenance.reindex import Reindexing

DEADLINE = 60.0


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in config.FIELDS:
        monkeypatch.delenv(config.PREFIX + name.upper(), raising=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The folder of a store with the three samples in it, whose server has ended."""
    folder = tmp_path_factory.mktemp("template")
    server = start_server(folder / "server", workers=1)
    try:
        paths = [str(path) for path in samples.write_samples(folder / "samples")]
        assert main(["store", *paths, "--url", server.url]) == 0
    finally:
        server.end()
    return server.data


@pytest.fixture
def store(template, tmp_path):
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(template, tmp_path / "store"))


def test_without_a_verb_the_verbs_are_told(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == USAGE
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"streamsrv {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert "usage: streamsrv " + verb in capsys.readouterr().out


def helps(parser, words=()):
    """The help of a verb, and of each of its actions."""
    yield " ".join(words), parser.format_help()
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, each in action.choices.items():
                yield from helps(each, (*words, name))


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples_that_can_be_parsed_and_exit_codes(verb):
    parser = next(action for action in cli.parser_of(verb)._actions if action.choices).choices[verb]
    for words, text in helps(parser, (verb,)):
        assert "Exit codes: 0 success; 1 a fault" in text
        lines = re.findall(r"^    streamsrv ((?:[^\\\n]|\\\n)*)$", text, re.MULTILINE)
        assert lines, words
        for line in lines:
            assert line.startswith(words)
            cli.parser_of(verb).parse_args(shlex.split(line.replace("\\\n", " ")))


def test_every_setting_is_a_flag_of_serve():
    parser = cli.parser_of("serve")
    for name, field in FIELDS.items():
        default = field.default
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        flag = f"--{config.flag(name)}"
        words = [flag] if isinstance(default, bool) else [flag, text]
        expected = True if isinstance(default, bool) else default
        assert getattr(config.settings_of(parser.parse_args(["serve", *words]), {}), name) == expected


def test_help_shows_the_settings_by_table_and_the_advanced_ones_last(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    places = [text.index(f"\n[{table}]:\n") for table in TABLES] + [text.index("\nadvanced, for ")]
    assert places == sorted(places)
    assert places[-1] < text.index("--fast-path,", places[0]) < text.index("--prefetch PREFETCH", places[0])


def test_a_flag_can_take_back_what_the_file_says(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("[store]\nread_only = true\n[http]\nport = 1\n")
    args = cli.parser_of("serve").parse_args(["serve", "--config", str(file), "--no-read-only"])
    settings = config.settings_of(args, {"STREAMSRV_PORT": "2"})
    assert (settings.read_only, settings.port) == (False, 2)


@pytest.mark.parametrize(
    "words",
    [["serve", "--port", "x"], ["serve", "--config", "none.toml"], ["check", "--config", "none.toml"]],
)
def test_a_wrong_setting(words, capsys):
    assert main(words) == USAGE
    assert capsys.readouterr().err.startswith("streamsrv: ")


def test_another_platform(monkeypatch, capsys):
    monkeypatch.setattr(config, "refuse_platform", lambda: "streamsrv runs on Linux only")
    assert main(["info"]) == USAGE
    assert capsys.readouterr().err == "streamsrv: streamsrv runs on Linux only\n"


@pytest.mark.parametrize("verb", ["check", "compact", "info", "reindex"])
def test_a_folder_that_is_no_store_is_left_alone(verb, tmp_path, capsys):
    folder = tmp_path / "misspelt"
    assert main([verb, "--data", str(folder)]) == FAILED
    assert "store.toml" in capsys.readouterr().err
    assert not folder.exists()


def test_check_info_and_compact_of_a_sound_store(store, capsys):
    capsys.readouterr()
    assert main(["check", "--data", str(store)]) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    assert main(["check", "--data", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "errors": 0, "findings": []}
    assert main(["info", "--data", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["segments"] >= 1
    assert main(["info", "--data", str(store)]) == 0
    assert f"store id: {told['store_id']}\n" in capsys.readouterr().out
    assert main(["compact", "--data", str(store), "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"] == 3
    assert main(["check", "--data", str(store)]) == 0


def test_check_finds_a_flipped_byte(store, capsys):
    segment = max(store.glob("segments/*.seg"), key=lambda path: path.stat().st_size)
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    capsys.readouterr()
    assert main(["check", "--data", str(store)]) == FAILED
    assert "error: segment" in capsys.readouterr().out
    assert main(["check", "--data", str(store), "--json"]) == FAILED
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["errors"]) == (False, len(told["findings"]))


def test_reindex_rebuilds_what_was_lost(store, capsys):
    for path in (store / "index").iterdir():
        path.unlink()
    (store / "index").rmdir()
    assert main(["check", "--data", str(store)]) == FAILED
    capsys.readouterr()
    assert main(["reindex", "--data", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["instances"] == 3
    assert main(["check", "--data", str(store)]) == 0


def test_what_reindex_has_lost_is_an_error(monkeypatch, store, capsys):
    lost = Finding(Severity.ERROR, "segment 1, byte 2", "a record is gone")
    monkeypatch.setattr(verbs, "reindex", lambda *_: Reindexing(instances=1, segments=2, findings=[lost]))
    capsys.readouterr()
    assert main(["reindex", "--data", str(store)]) == FAILED
    expected = "error: segment 1, byte 2: a record is gone\ninstances: 1\nsegments: 2\n1 errors\n"
    assert capsys.readouterr().out == expected


def test_beside_a_running_server(server, capsys):
    for verb in ("check", "compact", "info"):
        assert main([verb, "--data", str(server.data)]) == 0
    assert main(["reindex", "--data", str(server.data)]) == LOCKED
    assert main(["compact", "--all", "--data", str(server.data)]) == FAILED
    assert "stop the server first" in capsys.readouterr().err


def test_a_pipe_that_is_closed_is_no_crash(store):
    command = f"{sys.executable} -m streamsrv info --data {store} | true"
    ended = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=DEADLINE,
        check=False,
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("fault", [KeyboardInterrupt, BrokenPipeError])
def test_what_ends_a_verb_from_outside(monkeypatch, fault):
    def run(args):
        raise fault

    monkeypatch.setitem(verbs.VERBS, "info", (verbs.add_store_arguments, run))
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: SIM115 - closed by the test's end
    assert main(["info"]) == FAILED
    sys.stdout.close()


@pytest.mark.parametrize(
    "flags", [("--rate", "5"), ("--segments", "--rate", "fast"), ("--segments", "--rate", "0")]
)
def test_check_refuses_a_rate_that_makes_no_sense(store, flags):
    try:
        code = main(["check", "--data", str(store), *flags])
    except SystemExit as ended:
        code = ended.code
    assert code == 2


@pytest.mark.parametrize("text", ["8388608", "8192K", "8m"])
def test_check_segments_takes_a_rate(store, text, capsys):
    capsys.readouterr()
    assert main(["check", "--data", str(store), "--segments", "--rate", text]) == 0
    assert capsys.readouterr().out == "all is well\n"
