"""Fuzzes one target, or each in turn: `python tests/fuzz/run_fuzz.py part10 --seconds 60 --keep`.

With atheris, coverage of the readers guides the inputs. Without it, mutants of the corpus are tried. An input
that fails is printed as a bytes literal, and the exit code is not 0. `--keep` adds the inputs that reach new
code to the corpus: look at them before you commit them.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "codecs"), str(Path(__file__).parent)]

import corpus_files  # noqa: E402
import fuzz_targets  # noqa: E402
import mutation  # noqa: E402

try:
    import atheris
except ImportError:
    atheris = None

LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1"]
LONGEST_KEPT = 1_000  # bytes


def fuzz_here(name, folder, seconds):
    """Does not return: libFuzzer ends the process."""
    with atheris.instrument_imports(include=["streamsrv", "framecodecs"]):
        target = fuzz_targets.all_targets()[name]
    dictionary = folder / "words"
    dictionary.write_text("".join(f'"{escaped(word)}"\n' for word in target.words))
    flags = [*LIMITS, f"-max_total_time={seconds}", f"-dict={dictionary}", f"-artifact_prefix={folder}/"]
    atheris.Setup(["fuzz", *flags, str(folder / "corpus")], target.check)
    atheris.Fuzz()


def covering(name, inputs):
    """Those of the inputs, short ones first, that reach a line after a line that none before reached."""
    target = fuzz_targets.all_targets()[name]
    known, found = set(), []
    for content in sorted(inputs, key=len):
        reached = arcs(lambda content=content: target.check(content))
        if not reached <= known:
            known |= reached
            found.append(content)
    return found


def arcs(run):
    """Pairs of lines of ours that follow each other while it runs."""
    seen, last = set(), [None]

    def trace(frame, event, argument):
        if not any(part in frame.f_code.co_filename for part in ("/streamsrv/", "/framecodecs/")):
            return None
        here = frame.f_code, frame.f_lineno
        seen.add((last[0], here))
        last[0] = here
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return seen


def escaped(word):
    return "".join(f"\\x{byte:02x}" for byte in word)


def fuzz(name, seconds, keep):
    """Whether the target failed no input."""
    if atheris is None:
        return mutate(name, seconds)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, content in enumerate(corpus_files.inputs_of(name)):
            (corpus / f"kept{number}").write_bytes(content)
        command = [sys.executable, __file__, name, "--seconds", str(seconds), "--inside", place]
        done = subprocess.run(command, capture_output=True, text=True)
        print(
            name, *(line for line in done.stderr.splitlines() if "executed_units" in line or " DONE " in line)
        )
        failed = [path.read_bytes() for path in folder.glob("*-*")]
        for content in failed:
            print(f"{name} fails: {content!r}\n{(done.stdout + done.stderr)[-3000:]}")
        if keep:
            found = [path.read_bytes() for path in corpus.iterdir()]
            corpus_files.keep(name, [each for each in covering(name, found) if len(each) <= LONGEST_KEPT])
        return done.returncode == 0 and not failed


def mutate(name, seconds):
    target = fuzz_targets.all_targets()[name]
    seed = random.SystemRandom().randrange(1 << 32)
    corpus, choice = corpus_files.inputs_of(name), random.Random(seed)
    end, tried = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        content = mutation.mutant(corpus, target.words, choice)
        tried += 1
        try:
            target.check(content)
        except Exception as error:
            print(f"{name} fails: {content!r}: {error!r}")
            return False
    print(f"{name}: {tried} mutants, seed {seed}; without atheris nothing guides them")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="targets; all of them if none is named")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--keep", action="store_true", help="add what reaches new code to the corpus")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        fuzz_here(asked.names[0], asked.inside, asked.seconds)
    names = asked.names or sorted(path.stem for path in corpus_files.FOLDER.iterdir())
    failed = [name for name in names if not fuzz(name, asked.seconds, asked.keep)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
