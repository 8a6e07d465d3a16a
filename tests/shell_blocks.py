"""The `sh` blocks of the documentation, and their commands as words."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^#.*$|[ \t]+#[ \t].*$", re.MULTILINE)
ASSIGNMENT = re.compile(r"^(?:export )?\w+=")
KEYWORDS = ("do", "done", "then", "else", "fi", "if", "while", "!", "export", "exec", "sudo")


class Block(NamedTuple):
    place: str
    text: str


class Command(NamedTuple):
    place: str
    words: list[str]

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2]


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT)
    return [
        Block(f"{name}:{text.count(chr(10), 0, found.start()) + 2}", found[1])
        for found in BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[Command]:
    """Simple commands, also those in pipes, loops and `$( )` outside quotes. Comments, assignments and
    redirections are left out. Quotes are removed, variables stay."""
    text = COMMENT.sub("", block.text.replace("\\\n", " "))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found, words, redirected = list[Command](), list[str](), False
    for word in [*lexer, "\n"]:
        if set(word) <= set("<>&") and set(word) & set("<>"):
            redirected = True
        elif set(word) <= set("();|&\n"):
            words = without_keywords(words)
            found += [Command(block.place, words)] if words else []
            words = []
        elif redirected:
            redirected = False
        else:
            words.append(word)
    return found


def without_keywords(words: list[str]) -> list[str]:
    if words[:1] == ["for"]:
        return []
    while words and (words[0] in KEYWORDS or ASSIGNMENT.match(words[0]) or words[0] == "$"):
        words = words[1:]
    return words
