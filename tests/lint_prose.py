"""The prose of source and documents, held to plain technical English: `make lint` runs this.

    python tests/lint_prose.py [PATH ...]

It reads docstrings, comments and texts of the source, and Markdown outside code. It counts words that are not
used here, sentences of more than 25 words, and lines of Markdown of more than 100 characters. A line of
Markdown that begins with `>` is a quotation and is left out. Pages in Chinese have a line for each paragraph,
because a browser shows the end of a line as a blank, and the words of a sentence are not counted.

Exit status 1 if it finds something.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("streamsrv", "codecs", "perf")
DOCUMENTS = ("README.md", "README.zh.md", "CHANGELOG.md", "SECURITY.md", "docs", "conf")

PEOPLE = r"(?:client|clients|person|people|user|users|reader|readers|someone|those|engineers?|developers?)"
WORDS = re.compile(
    r"\b(?:what|whatever|whoever|whom|nobody|somebody|anybody|anew|besides|reckoned|for to)\b"
    r"|\bwho\b",
    re.IGNORECASE,
)
WHO_OF_PEOPLE = re.compile(rf"\b{PEOPLE},? who\b", re.IGNORECASE)
LONGEST_SENTENCE = 25
LONGEST_LINE = 100
SENTENCE_END = re.compile(r"(?<=[.!?;:])[\s\"')]+|\s[-–—]\s")
WORD = re.compile(r"[A-Za-z][\w'’./-]*")
CODE = re.compile(r"`[^`]*`")
FIGURE = re.compile(r"->|\|--|`--|\||^\s*[-=]{3,}|[═─│▼►]")


class Finding(NamedTuple):
    path: Path
    line: int
    kind: str  # word, sentence or line
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.kind}: {self.text}"


def words(path: Path, line: int, text: str) -> list[Finding]:
    plain = WHO_OF_PEOPLE.sub("", CODE.sub("x", text))
    return [Finding(path, line, "word", found[0]) for found in WORDS.finditer(plain)]


def sentences(path: Path, line: int, text: str) -> list[Finding]:
    """Of text in paragraphs and lists; figures and tables are left out."""
    found, paragraph, first = list[Finding](), list[str](), line
    for number, each in enumerate([*text.split("\n"), ""], line):
        begins_item = re.match(r"\s*(?:[-*]|\d+\.)\s", each)
        figure = FIGURE.search(each) or (each.startswith("    ") and not begins_item)
        if (not each.strip() or begins_item or figure) and paragraph:
            joined = CODE.sub("x", " ".join(paragraph))
            for sentence in SENTENCE_END.split(joined):
                count = len(WORD.findall(sentence))
                if count > LONGEST_SENTENCE:
                    found.append(Finding(path, first, "sentence", f"{count} words: {sentence[:70]}"))
            paragraph = []
        if each.strip() and not figure:
            if not paragraph:
                first = number
            paragraph.append(each.strip().lstrip("-*# "))
    return found


def of_source(path: Path) -> list[Finding]:
    text = path.read_text(encoding="utf-8")
    found = comments(path, text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                found += sentences(path, node.body[0].lineno, docstring)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 2:
            found += words(path, node.lineno, node.value)  # docstrings, too
    return found


def comments(path: Path, text: str) -> list[Finding]:
    """Comments on lines that follow one another are one text."""
    found, block, first, last = list[Finding](), list[str](), 0, -1
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    for token in [*tokens, None]:
        if block and (token is None or token.start[0] != last + 1):
            found += words(path, first, "\n".join(block)) + sentences(path, first, "\n".join(block))
            block = []
        if token is not None:
            if not block:
                first = token.start[0]
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    return found


def of_document(path: Path) -> list[Finding]:
    found, fenced, kept = list[Finding](), False, list[str]()
    is_markdown = path.suffix == ".md"
    is_chinese = "zh" in (path.parent.name, path.stem.rpartition(".")[2])
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            kept.append("")
        elif fenced or line.startswith(">") or (not is_markdown and not line.startswith("#")):
            kept.append("")
        else:
            free = is_chinese or len(line) <= LONGEST_LINE
            if is_markdown and not free and not line.startswith("|") and "](" not in line:
                found.append(Finding(path, number, "line", f"{len(line)} characters"))
            kept.append(line if is_markdown else line.lstrip("# "))
            found += words(path, number, kept[-1])
    return found if is_chinese else found + sentences(path, 1, "\n".join(kept))


def files(paths: list[str]) -> list[Path]:
    found = list[Path]()
    for name in paths:
        path = (ROOT / name).resolve()
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        found += [each for each in inside if each.suffix in (".py", ".md", ".toml")]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", default=[*SOURCES, *DOCUMENTS])
    found = list[Finding]()
    for path in files(parser.parse_args().paths):
        found += of_source(path) if path.suffix == ".py" else of_document(path)
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
