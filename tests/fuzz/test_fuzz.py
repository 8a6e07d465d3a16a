"""Every reader with inputs that are nearly right: it reads them or raises a documented error.

Each test run takes the kept corpus and a fixed number of mutants. `SOAK=20` takes 20 seconds more for each
target, with a new seed and guided by coverage where atheris is installed. A failure prints the input: add it
to the corpus together with the fix.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus_files import FOLDER, inputs_of
from fuzz_targets import all_targets
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import mutant

SOAK = int(os.environ.get("SOAK", "1"))
SECONDS = 0.4  # of mutants a target at most, on a slow machine
MUTANTS = 1_000
SLOWEST = 1.0  # CPU seconds for an input of at most 16 kB
CORPUS_BYTES = 300_000
TARGETS = all_targets()
EVERY_TARGET = pytest.mark.parametrize("name", TARGETS)


def check(name, content):
    began = time.process_time()
    try:
        TARGETS[name].check(content)
    except Exception as error:
        error.add_note(f"the input: {content!r}")
        raise
    assert time.process_time() - began < SLOWEST, (name, content)


@EVERY_TARGET
def test_the_kept_inputs(name):
    assert inputs_of(name), "a target has inputs to begin with"
    for content in inputs_of(name):
        check(name, content)


@EVERY_TARGET
def test_mutants(name):
    corpus, choice = inputs_of(name), random.Random(f"{name} 1")
    end = time.monotonic() + SECONDS
    tried = 0
    while tried < MUTANTS and time.monotonic() < end:
        check(name, mutant(corpus, TARGETS[name].words, choice))
        tried += 1
    assert tried >= 20


@EVERY_TARGET
def test_any_bytes(name):
    @settings(derandomize=True, max_examples=40, deadline=None, database=None)
    @given(st.binary(max_size=200))
    def any_bytes(content):
        check(name, content)

    any_bytes()


if SOAK > 1:

    @EVERY_TARGET
    def test_guided_by_coverage(name, tmp_path):
        command = [sys.executable, str(Path(__file__).with_name("run_fuzz.py")), name, "--seconds", str(SOAK)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_the_corpus_is_small_and_has_no_other_files():
    files = {path.stem: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == set(TARGETS)
    assert sum(files.values()) < CORPUS_BYTES
