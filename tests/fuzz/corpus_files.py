"""The kept inputs: a file for each target, an input a line, with the escapes of a Python bytes literal."""

import ast
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def inputs_of(name):
    path = FOLDER / f"{name}.txt"
    return [ast.literal_eval(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(name, inputs):
    """Write the file again with these inputs too, without repetitions."""
    FOLDER.mkdir(exist_ok=True)
    known = dict.fromkeys([*inputs_of(name), *inputs])
    (FOLDER / f"{name}.txt").write_text("".join(f"{each!r}\n" for each in known))
