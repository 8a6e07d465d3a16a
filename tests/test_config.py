"""Settings: every source, every type, every mistake."""

import dataclasses
import json
import os

import pytest
import settings_pages
from settings_pages import PAGE, REFERENCE

from streamsrv import config
from streamsrv.cli import USAGE, main
from streamsrv.config import FIELDS, SettingsError
from streamsrv.settings import TABLES, Settings


def write(tmp_path, text):
    file = tmp_path / "streamsrv.toml"
    file.write_text(text)
    return file


def test_the_pages_are_those_that_the_settings_make():
    message = "run python tests/settings_pages.py"
    assert REFERENCE.read_text() == settings_pages.reference(), message
    assert PAGE.read_text() == settings_pages.page(PAGE.read_text()), message


def test_the_reference_file_holds_every_default():
    assert config.load(REFERENCE) == Settings()
    assert config.from_toml(REFERENCE).keys() == FIELDS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_has_a_table_a_unit_and_a_reason(name):
    row = FIELDS[name].metadata
    assert row["table"] in TABLES
    assert row["unit"]
    assert len(row["reason"]) > 20
    assert f"| `{name}` | " in PAGE.read_text()


def test_advanced_settings_are_marked_and_come_last():
    assert "# advanced; yes or no\n" in REFERENCE.read_text()
    for table in TABLES:
        marks = [field.metadata["advanced"] for _, field in settings_pages.in_table(table)]
        assert marks == sorted(marks), table


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_may_be_given_in_words(name):
    """As a flag or in the environment it is text."""
    default = FIELDS[name].default
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    assert config.checked(name, text, name) == default


def test_each_source_beats_the_one_before(tmp_path):
    file = write(tmp_path, "[http]\nport = 1\nworkers = 1\n[limits]\nmax_head = 5000\n")
    settings = config.load(file, {"STREAMSRV_PORT": "2", "STREAMSRV_WORKERS": "2"}, {"port": 3})
    assert (settings.port, settings.workers, settings.max_head) == (3, 2, 5000)
    assert settings.host == Settings().host


def test_the_verb_prints_each_setting_and_its_source(tmp_path, capsys, monkeypatch):
    file = tmp_path / "streamsrv.toml"
    file.write_text('[http]\nport = 1000\nhost = "127.0.0.2"\n')
    monkeypatch.setenv("STREAMSRV_PORT", "2000")
    words = ["settings", "--config", str(file), "--workers", "3", "--cors-origins", "http://a.example"]
    words += ["--public-url", "https://user:swordfish@pacs.example/dicom", "--no-browser"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for line in (
        f'host = "127.0.0.2"  # file {file}',
        "port = 2000  # environment STREAMSRV_PORT",
        'cors_origins = ["http://a.example"]  # flag --cors-origins',
        'public_url = "https://...@pacs.example/dicom"  # flag --public-url',
        f"max_connections = {Settings().max_connections}  # default",
    ):
        assert f"\n{line}\n" in text, line
    assert "swordfish" not in text
    again = tmp_path / "again.toml"
    again.write_text(text.replace("...@", "user:swordfish@"))
    environment = {"STREAMSRV_PORT": "2000"}
    flags = {"workers": 3, "cors_origins": "http://a.example", "browser": False}
    flags["public_url"] = "https://user:swordfish@pacs.example/dicom"
    assert config.load(again) == config.load(file, environment, flags)
    assert main([*words, "--changed", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["http"]["port"] == {"value": 2000, "source": "environment", "place": "STREAMSRV_PORT"}
    assert {name for rows in told.values() for name in rows} == {"host", "port", *flags}
    assert main(["settings", "--port", "x"]) == USAGE


@pytest.mark.parametrize(
    "url",
    [
        "postgres:/u:swordfish@db/x",  # refused
        "postgresql://u:sword/swordfish@db/x",
        "postgresql://u:%swordfish@db/x",
        "postgresql://u:a@swordfish@db/x",
        "postgresql://u:swordfish @db/x",
        "postgresql://u:swordfish@db/x",  # taken
        "postgresql://u:sword?swordfish@db:5432,other/x?sslmode=require",
        "postgresql://db/x?password=swordfish&sslmode=require",
    ],
)
def test_no_message_and_no_list_of_settings_has_the_password_of_a_database(url, capsys):
    code = main(["settings", "--index", url])
    said = "".join(capsys.readouterr())
    assert "swordfish" not in said
    assert (code, "in a password" in said.lower()) in ((0, False), (USAGE, True))


def test_other_variables_of_the_environment_are_not_ours():
    assert config.load(environment={"PATH": "/bin", "PORT": "9"}) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[http]\nports = 1", "'ports' in .* did you mean port?"),
        ("[limits]\nmax_haed = 1", "did you mean max_head?"),
        ("zzzzzzzz = 1", "unknown setting 'zzzzzzzz'"),
        ("port = 1", r"port in .* is outside the tables: move it to table \[http\]"),
        ("port = {}", r"outside the tables: move it to table \[http\]"),
        ("[limits]\ndata = 'x'", r"data in .* is in table \[limits\]: move it to table \[store\]"),
        ("[htpp]\nport = 1", r"unknown table \[htpp\] in .*; the tables are \[http\], \[store\]"),
        ("http = 1", "unknown setting 'http'"),
        ("[http]\nport = 'x'", "is not a whole number"),
        ("[http]\nport = true", "is not a whole number"),
        ("[http]\nport = 1.5", "is not a whole number"),
        ("[http]\nport = 70000", "more than 65535"),
        ("[http]\nport = -1", "less than 0"),
        ("[limits]\nmin_rate = -1", "less than 0"),
        ("[limits]\nmax_uploads = 0", "less than 1"),
        ("[limits]\nidle_timeout = nan", "less than 0.1"),
        ("[limits]\nidle_timeout = true", "is not a number"),
        ("[store]\nread_only = 'maybe'", "is not yes or no"),
        ("[http]\nhost = 5", "is not a text"),
        ("[http]\ncors_origins = [1]", "is not a list of texts"),
        ("[http]\ncors_origins = 1", "is not a list of texts"),
        ("[store]\non_duplicate = 'keep'", "none of refuse, accept-identical, replace"),
        (
            "[http]\ncors_origins = ['localhost:3000']",
            "never match: an origin has a scheme: write http://localhost",
        ),
        ("[http]\ncors_origins = ['https://a.example/viewer']", "never match: .* without a path"),
        ("[http]\ncors_origins = ['https://a.example?x']", "never match: .* without a path"),
        ("[http]\ncors_origins = ['https://me@a.example']", "never match: "),
        ("[http]\ncors_origins = ['https://bücher.example']", "never match: "),
        ("[http]\ncors_origins = ['https://*.example']", "never match: an origin has no wildcard"),
        ("[http]\ncors_origins = ['https://a.example:443/']", "browsers leave out the default port 443"),
        ("[http]\ncors_origins = ['https://a.example:65536']", "there is no port 65536"),
        ("[http]\ncors_origins = ['https://a', 'HTTP://b:80']", "'HTTP://b:80' is refused"),
        ("[http]\nallowed_hosts = ['10.0.0.0/8']", "never match: .* without scheme, port"),
        ("[http]\nallowed_hosts = ['a', 'pacs.example:8943']", "'pacs.example:8943' is refused: .* without"),
        (
            "[http]\ntrusted_proxies = ['10.0.0.1', 'proxy']",
            "'proxy' is refused: .* an IP address, or a network",
        ),
        ("[http]\npublic_url = 'pacs.example'", "is no URL of a server: write https"),
        ("[http]\npublic_url = 'https://pacs.example/?a'", "is no URL of a server: write https"),
        ("port = ", "is not TOML"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path, text, says):
    with pytest.raises(SettingsError, match=says):
        config.load(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        config.load(tmp_path / "none.toml")


def test_mistakes_elsewhere_name_their_place():
    with pytest.raises(SettingsError, match=r"STREAMSRV_PROT.*did you mean port"):
        config.load(environment={"STREAMSRV_PROT": "1"})
    with pytest.raises(SettingsError, match="--max-url: 'x'"):
        config.load(flags={"max_url": "x"})
    for text in ('["https://a.example"]', '["https://a.example","https://b.example"]', '"https://a.example"'):
        with pytest.raises(SettingsError, match=r"--cors-origins: .* by commas, without brackets and quotes"):
            config.load(flags={"cors_origins": text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("allowed_hosts", text)
            for text in ("*", "pacs", "PACS.example.", "10.0.0.1", "fd00::1", "a_b-c.d")
        ),
        *(("trusted_proxies", text) for text in ("10.0.0.1", "10.0.0.1/8", "::1", "fd00::/8")),
        *(
            ("public_url", text)
            for text in ("", "http://a:1", "https://pacs.example/dicom/", "HTTPS://[::1]")
        ),
    ],
)
def test_names_addresses_and_urls_of_servers(name, text):
    found = getattr(config.load(flags={name: text}), name)
    assert found == (text if name == "public_url" else (text,))


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "http://localhost:3000", "https://Viewer.example/", "http://[::1]:8080", "app://viewer"],
)
def test_origins_that_a_browser_sends(origin):
    assert config.load(flags={"cors_origins": origin}).cors_origins == (origin,)


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("TRUE", True), ("0", False), ("no", False)])
def test_words_for_yes_and_no(text, value):
    assert config.load(environment={"STREAMSRV_READ_ONLY": text}).read_only is value


def test_lists_are_separated_by_commas():
    settings = config.load(environment={"STREAMSRV_CORS_ORIGINS": "https://a, ,https://b"})
    assert settings.cors_origins == ("https://a", "https://b")


def test_settings_survive_the_way_to_a_worker():
    settings = dataclasses.replace(
        Settings(), cors_origins=("https://a",), port=1, read_only=True, idle_timeout=2.5
    )
    read, write = os.pipe()
    with open(write, "wb") as pipe, open(read, "rb") as other:
        config.send(settings, pipe)
        pipe.write(b"x")
        pipe.flush()
        assert config.receive(read) == settings
        assert other.read(1) == b"x"  # the lifeline is untouched


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1


@pytest.mark.parametrize(
    ("system", "machine", "says"),
    [
        ("linux", "x86_64", None),
        ("linux", "aarch64", None),
        ("darwin", "arm64", "need Linux"),
        ("win32", "AMD64", "need Linux"),
        ("linux", "riscv64", "x86-64 and arm64"),
    ],
)
def test_platforms(system, machine, says):
    reason = config.refuse_platform(system, machine)
    assert (reason is None) if says is None else says in reason
