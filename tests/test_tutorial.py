"""docs/tutorial.md and docs/zh/tutorial.md as a test: each of their commands goes to a real server through
the real curl, in its order, and the answer is compared with the one that the page shows.

How the page shows an answer: status line, some headers, an empty line, the body. A line `...` stands for any
number of lines. JSON is laid out with an attribute a line, multipart bodies as the heads of their parts, and
bytes as their number: see `Answer.lines`. What differs from one server to the next is made equal on both
sides: see `level`.
"""

import email
import email.policy
import itertools
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from live_server import ROOT, environment, executable, start_server

from streamsrv import samples

CURL = shutil.which("curl")
PAGE = ROOT / "docs" / "tutorial.md"
CHINESE = ROOT / "docs" / "zh" / "tutorial.md"
ORIGINAL = ROOT.parent / "shared" / "tutorial.zh.md"
ORIGINAL_SAMPLES = ROOT.parent / "shared" / "samples"
PRINTED_BASE = "http://127.0.0.1:8943/v2"

needs_original = pytest.mark.skipif(
    not ORIGINAL.is_file(), reason="the original tutorial is not beside the project"
)
needs_original_samples = pytest.mark.skipif(
    not ORIGINAL_SAMPLES.is_dir(), reason="the original sample files are not beside the project"
)
pytestmark = pytest.mark.skipif(CURL is None, reason="curl is not installed")


# --- the documents ---


@dataclass(frozen=True)
class Step:
    command: str
    shown: str  # the answer as the page shows it; "" in the original, which shows none


def steps_of_page(page: Path = PAGE) -> list[Step]:
    """Each `sh` block that calls curl, with the `http` block that follows it."""
    blocks = re.findall(
        r"^```(sh|http)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    steps = []
    for (language, text), (following, answer) in itertools.pairwise(blocks):
        if language == "sh" and text.startswith("curl"):
            assert following == "http", f"no answer is shown for: {text}"
            steps.append(Step(text.strip(), answer.strip("\n")))
    return steps


def commands_of_original() -> list[str]:
    """Inline code that calls curl, with its placeholders made shell variables."""
    commands = re.findall(r"^`(curl .*)`$", ORIGINAL.read_text(encoding="utf-8"), re.MULTILINE)
    return [
        text.replace("{base-url}", "$BASE_URL").replace("{path-to-dicoms}", "$DICOMS") for text in commands
    ]


def steps_of_original() -> list[Step]:
    shown = {step.command: step.shown for step in reversed(steps_of_page())}
    return [Step(command, shown[command]) for command in commands_of_original()]


# --- an answer, as curl got it ---


@dataclass(frozen=True)
class Answer:
    status_line: str
    headers: dict[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("Content-Type", "").split(";")[0]

    def lines(self) -> list[str]:
        if self.media_type in ("application/dicom+json", "application/problem+json"):
            return list(json_lines(json.loads(self.body)))
        if self.media_type == "multipart/related":
            return list(self.part_lines())
        return [f"<{len(self.body)} bytes>"] if self.body else []

    def part_lines(self):
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + self.body, policy=email.policy.HTTP)
        for part in message.iter_parts():
            yield "--..."
            yield from (f"{name}: {value}" for name, value in part.raw_items())
            yield ""
            yield f"<{len(part.get_payload(decode=True))} bytes>"
        yield "--...--"


def json_lines(value, indent=""):
    """An attribute a line; items of sequences indented."""
    if isinstance(value, list):
        yield f"{indent}["
        for number, dataset in enumerate(value, 1):
            yield from with_comma(json_lines(dataset, indent + "  "), number < len(value))
        yield f"{indent}]"
        return
    yield f"{indent}{{"
    for number, (name, element) in enumerate(value.items(), 1):
        yield from with_comma(element_lines(name, element, indent + "  "), number < len(value))
    yield f"{indent}}}"


def element_lines(name, element, indent):
    if isinstance(element, dict) and "vr" in element:
        element = {"vr": element["vr"], **element}  # first, in whatever order it came
    sequence = isinstance(element, dict) and element.get("vr") == "SQ" and "Value" in element
    if not sequence:
        yield f"{indent}{json.dumps(name)}: {json.dumps(element, ensure_ascii=False)}"
        return
    items = list(json_lines(element["Value"], indent))
    yield f'{indent}{json.dumps(name)}: {{"vr": "SQ", "Value": {items[0].strip()}'
    yield from items[1:-1]
    yield items[-1] + "}"


def with_comma(lines, wanted):
    lines = list(lines)
    yield from lines[:-1]
    yield lines[-1] + ("," if wanted else "")


def level(line: str, base_url: str) -> str:
    """The line with everything that depends on server, run or version made equal."""
    line = line.replace(base_url, PRINTED_BASE)
    line = re.sub(r"boundary=\S+", "boundary=...", line)
    return re.sub(r'("instance"): ".*?"', r'\1: "..."', line)


def without_version_2(lines: list[str]) -> list[str]:
    """A response dataset as version 1 gives it: without Failed Attributes Sequences (0074,1048)."""
    dataset = json.loads("\n".join(lines))
    for element in dataset.values():
        if element["vr"] == "SQ":
            for item in element["Value"]:
                del item["00741048"]
    return list(json_lines(dataset))


def matches(shown: list[str], real: list[str]) -> bool:
    """A shown line `...` stands for any number of lines."""
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in real)) is not None


# --- running curl ---


class Curl:
    """Runs commands as printed: what the test wants to know besides goes through curl's own configuration
    file."""

    def __init__(self, folder: Path, base_url: str, dicoms: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.head, self.body = folder / "head", folder / "body"
        (folder / ".curlrc").write_text(f'silent\nshow-error\nmax-time = 60\ndump-header = "{self.head}"\n')
        self.environment = {"PATH": os.environ["PATH"], "CURL_HOME": str(folder)}
        self.environment |= {"BASE_URL": base_url, "DICOMS": str(dicoms)}

    def run(self, command: str) -> Answer:
        for file in (self.head, self.folder / "suppressWarnings.txt"):
            file.unlink(missing_ok=True)
        with self.body.open("wb") as body:
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdout=body,
                stderr=subprocess.PIPE,
            )
        assert done.returncode == 0, f"{command}\n{done.stderr.decode()}"
        to_file = "--output" in command
        head = self.head.read_text("latin-1").replace("\r\n", "\n").strip("\n")
        status_line, *lines = head.split("\n\n")[-1].split("\n")  # a 100 Continue comes first
        headers = dict(line.split(": ", 1) for line in lines)
        body = (self.folder / "suppressWarnings.txt" if to_file else self.body).read_bytes()
        return Answer(status_line, headers, body)


def check(step: Step, answer: Answer, base_url: str, *, exact_sizes: bool) -> None:
    head, _, body = step.shown.partition("\n\n")
    status_line, *headers = head.split("\n")
    shown_body = body.split("\n") if body else []
    if "/v1" in base_url and "--request POST" in step.command:
        shown_body = without_version_2(shown_body)
    assert answer.status_line.strip() == status_line, (step.command, answer.body[:1000])
    for header in headers:
        name, value = header.split(": ", 1)
        real = level(answer.headers.get(name, "(none)"), base_url.rstrip("/"))
        if name != "Content-Length" or exact_sizes:
            assert real == value, (step.command, name)
    real_body = [level(line, base_url.rstrip("/")) for line in answer.lines()]
    if not exact_sizes:  # other samples: other file meta information
        shown_body, real_body = (
            [re.sub(r"<\d+ bytes>", "<bytes>", line) for line in x] for x in (shown_body, real_body)
        )
    assert matches(shown_body, real_body), f"{step.command}\n" + "\n".join(real_body)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start_server(tmp_path_factory.mktemp("tutorial"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn by the command line that the page prints."""
    folder = tmp_path_factory.mktemp("drawn")
    subprocess.run([*executable(), "samples", "samples"], cwd=folder, check=True, env=environment())
    return folder / "samples"


BASES = pytest.mark.parametrize("version_path", ["/v1", "/v1/", "/v2", "/v2/"])


@BASES
def test_the_page_on_our_samples(server, drawn, tmp_path, version_path):
    run_through(steps_of_page(), server.origin + version_path, drawn, tmp_path)


def test_the_chinese_page_on_our_samples(server, drawn, tmp_path):
    steps = steps_of_page(CHINESE)
    run_through(steps, f"{server.origin}/v2", drawn, tmp_path)
    assert [step.command for step in steps] == [step.command for step in steps_of_page()]


@needs_original_samples
@BASES
def test_the_page_on_the_original_samples(server, tmp_path, version_path):
    base_url = server.origin + version_path
    run_through(steps_of_page(), base_url, ORIGINAL_SAMPLES, tmp_path, exact_sizes=False)


@needs_original
@BASES
def test_the_original_tutorial(server, drawn, tmp_path, version_path):
    run_through(steps_of_original(), server.origin + version_path, drawn, tmp_path)


def run_through(steps, base_url, dicoms, folder, *, exact_sizes=True):
    curl = Curl(folder, base_url, dicoms)
    assert steps
    for step in steps:
        check(step, curl.run(step.command), base_url, exact_sizes=exact_sizes)
    trace = (folder / "trace.txt").read_text("latin-1")
    assert "HTTP/1.1 100" in trace
    assert "Done waiting for 100-continue" not in trace  # what curl says after its second of waiting


# --- what the page says besides ---


def listed(prefix: str, page: Path = PAGE) -> list[str]:
    """Header values that the page lists as alternatives: `- `Content-Type: ...``."""
    return re.findall(rf"^- `({prefix}: .*?)`", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("header", listed("Content-Type"))
@pytest.mark.parametrize("file_name", [sample.file_name for sample in samples.SAMPLES])
def test_every_form_of_content_type_stores(server, drawn, tmp_path, header, file_name):
    curl = Curl(tmp_path, f"{server.origin}/v2", drawn)
    header = header.replace('"', '\\"')
    form = f'--form "file1=@$DICOMS/{file_name};type=application/dicom"'
    answer = curl.run(f'curl --request POST "$BASE_URL/studies" --header "{header}" {form}')
    assert answer.status_line.split(" ")[1] == "200", answer.body
    answer = curl.run(f'curl --request DELETE "$BASE_URL/studies/{samples.STUDY_UID}"')
    assert answer.status_line.split(" ")[1] == "204"


@pytest.mark.parametrize("header", listed("Accept"))
def test_every_form_of_accept_retrieves_the_frame(server, drawn, tmp_path, header):
    curl = Curl(tmp_path, f"{server.origin}/v2", drawn)
    upload = 'curl "$BASE_URL/studies" --header "Content-Type: application/dicom" --data-binary '
    curl.run(f'{upload} "@$DICOMS/red-triangle.dcm"')
    sample = samples.SAMPLES[0]
    instance = f"studies/{samples.STUDY_UID}/series/{sample.series_uid}/instances/{sample.instance_uid}"
    header = header.replace('"', '\\"')
    answer = curl.run(
        f'curl "$BASE_URL/{instance}/frames/1" --header "{header}" --output suppressWarnings.txt'
    )
    curl.run(f'curl --request DELETE "$BASE_URL/studies/{samples.STUDY_UID}"')
    assert answer.status_line.split(" ")[1] == "200", answer.body
    assert samples.pixels(sample) in answer.body


def test_the_page_lists_the_alternatives():
    assert len(listed("Content-Type")) == 4
    assert len(listed("Accept")) == 3
    for prefix in ("Content-Type", "Accept"):
        assert listed(prefix, CHINESE) == listed(prefix)


@needs_original
def test_the_page_has_every_command_of_the_original_word_for_word():
    commands = dict.fromkeys(step.command for step in steps_of_page())  # repeated ones count once
    original = commands_of_original()
    assert len(original) == 19
    assert [command for command in commands if command in original] == original


@pytest.mark.parametrize("page", [PAGE, CHINESE], ids=["English", "Chinese"])
def test_the_page_names_files_and_uids_of_the_samples(page):
    text = page.read_text(encoding="utf-8")
    for sample in samples.SAMPLES:
        row = f"| {sample.file_name} | {samples.STUDY_UID} | {sample.series_uid} | {sample.instance_uid} |"
        assert row in text


def test_a_line_of_dots_stands_for_any_number_of_lines():
    assert matches(["a", "...", "z"], ["a", "z"])
    assert matches(["a", "...", "z"], ["a", "b", "c", "z"])
    assert not matches(["a", "...", "z"], ["a", "b", "c"])
    assert not matches(["a", "z"], ["a", "b", "z"])
