"""Every command of the `sh` blocks in the documentation: its syntax, and that programs, verbs, flags, files,
targets and URLs of this project exist."""

import itertools
import re
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest
from shell_blocks import PAGES, ROOT, Block, blocks_of, commands_of

from perf.__main__ import GROUPS
from streamsrv import cli
from streamsrv.wire import resources

pytestmark = pytest.mark.no_cover  # other tests pass the same lines

BLOCKS = [block for path in PAGES for block in blocks_of(path)]
COMMANDS = [command for block in BLOCKS for command in commands_of(block)]
# Programs of others, whose arguments are not checked here.
OTHERS = {
    *(
        "apt",
        "caddy",
        "cat",
        "cd",
        "cut",
        "chmod",
        "chown",
        "cp",
        "createdb",
        "createuser",
        "docker",
        "echo",
        "echoscu",
        "findscu",
        "getscu",
        "movescu",
        "find",
        "grep",
        "haproxy",
    ),
    *("head", "htpasswd", "install", "jq", "kill", "kubectl", "ls", "mkdir", "mv", "nginx", "npm", "npx"),
    *("openssl", "pip", "pipx", "prometheus", "promtool", "rm", "rsync", "sed", "sha256sum", "sleep"),
    *("storescp", "storescu", "stowrs", "systemctl", "systemd-run", "tail", "tar", "tr", "unshare"),
    *("unzip", "wc", "zcat"),
}
CHECKED = {"streamsrv", "curl", "make", "python", "python3"}


def commands_with(program):
    found = [command for command in COMMANDS if command.program == program]
    return pytest.mark.parametrize("command", found, ids=lambda command: command.place)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_shell_reads_every_block(block):
    done = subprocess.run(["sh", "-n"], input=block.text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), block


def test_every_program_is_known():
    assert {command.program for command in COMMANDS} <= OTHERS | CHECKED


def test_both_readmes_have_the_same_commands():
    pages = (ROOT / "README.md", ROOT / "README.zh.md")
    found = [[each.words for block in blocks_of(page) for each in commands_of(block)] for page in pages]
    assert found[0] == found[1]


@commands_with("streamsrv")
def test_verbs_and_flags_exist(command):
    _, verb, *_ = words = command.words
    assert verb in cli.VERBS, command
    try:
        cli.parser_of(verb).parse_args(words[1:])
    except SystemExit:
        pytest.fail(f"{command.place}: {' '.join(words)}")


@commands_with("make")
def test_targets_exist(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in command.words[1:]:
        assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), command


@commands_with("python")
def test_modules_exist(command):
    if command.words[1:3] == ["-m", "perf"]:
        names = [word for word in command.words[3:] if word in ("show", "compare", "publish", *GROUPS)]
        assert names or command.words[3].startswith("--"), command
    else:
        assert (ROOT / command.words[1]).is_file(), command


def test_files_exist():
    named = [word for command in COMMANDS for word in command.words if re.match(r"(conf|tests)/", word)]
    assert len(named) > 2
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.fixture(scope="module")
def options_of_curl():
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = subprocess.run(["curl", "--help", "all"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?:^| )(-\w|--[\w.-]+)", text))


@commands_with("curl")
def test_options_and_resources_of_curl_exist(command, options_of_curl):
    words = command.words[1:]
    for word in words:
        if word.startswith("--") or re.match(r"-\w$", word):
            assert word in options_of_curl, command
    method = method_of(words)
    for word in words:
        path = path_of(word)
        if path is not None:
            target = resources.target_of(path)
            assert method in target.route.allow, (command, target.route.template)


def method_of(words):
    named = [after for word, after in itertools.pairwise(words) if word in ("-X", "--request")]
    if named:
        return named[0]
    sends = {"--form", "-F", "--data", "-d", "--data-binary", "--upload-file"} & set(words)
    return "POST" if sends else "HEAD" if {"-I", "--head"} & set(words) else "GET"


def path_of(word):
    """The path of a URL of this server, with values instead of variables, else None. A base URL is written
    as a variable or with port 8943."""
    text = re.sub(r"^\$\{?BASE(?:_URL)?\}?", "http://127.0.0.1:8943/v2", word)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or parts.port != 8943:
        return None
    path = re.sub(r"\$\{?\w+\}?", "1", parts.path)
    return path or "/"


def words_in(pages):
    return [command.words for path in pages for block in blocks_of(path) for command in commands_of(block)]


def test_the_first_page_in_chinese_has_the_same_commands():
    assert words_in([ROOT / "README.zh.md"]) == words_in([ROOT / "README.md"])


def test_commands_of_chinese_pages_are_in_an_english_page():
    """The paths of data folders may differ."""
    chinese = {path for path in PAGES if path.parent.name == "zh"}
    english = [words[:2] for words in words_in(set(PAGES) - chinese)]
    assert len(chinese) >= 3
    assert [words for words in words_in(chinese) if words[:2] not in english] == []


# --- the reader of blocks itself ---


def words_of(text):
    return [command.words for command in commands_of(Block("here", text))]


def test_commands_are_found_in_every_place():
    assert words_of("a -b 'c d' \\\n  e  # comment\nf | g > h; i && j &") == [
        ["a", "-b", "c d", "e"],
        ["f"],
        ["g"],
        ["i"],
        ["j"],
    ]
    assert words_of("for x in 1 2; do\n  k $x\ndone\nA=b sudo l") == [["k", "$x"], ["l"]]
    assert words_of("U=$(m --n)\necho '#o' 2>/dev/null") == [["m", "--n"], ["echo", "#o", "2"]]


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("$BASE_URL/studies/$STUDY/metadata", "/v2/studies/1/metadata"),
        ("http://127.0.0.1:8943/v2/studies?limit=1", "/v2/studies"),
        ("http://orthanc:8042/dicom-web/studies", None),
        ("file1=@x", None),
    ],
)
def test_paths_of_this_server_are_recognised(word, path):
    assert path_of(word) == path
