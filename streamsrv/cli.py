"""The command line: `streamsrv VERB`. VERBS has the summary of each verb, and the module that has its
arguments and its function. The module is imported when the verb is used, because only `store`, `samples`,
`export` and `pull` run on macOS and Windows.

Exit codes: 0 success; 1 a fault, which is printed; 2 the command line, a setting or the platform is wrong;
3 another process holds the store.

The index is a mapped file. If the disk cannot read a page of it, the kernel sends SIGBUS, which Python code
cannot catch. So a verb that maps the index runs in a child process, and the parent reports its death. The
kernel kills the child when the parent dies (PR_SET_PDEATHSIG, prctl(2)).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from streamsrv import __version__, config
from streamsrv.config import SettingsError
from streamsrv.errors import StoreLocked, StreamsrvError

FAILED, USAGE, LOCKED = 1, 2, 3
# Verbs that map the index in their own process, unlike `serve`; `export` and `pull` only with --data.
MAPPING = ("check", "reindex", "compact", "info", "backup", "restore", "export", "pull", "import", "move")
PR_SET_PDEATHSIG = 1


EXIT_CODES = """
Exit codes: 0 success; 1 a fault, which is printed; 2 the command line, a setting or the platform is wrong;
3 another process holds the store.
"""


class Verb(NamedTuple):
    """`examples` are command lines without `streamsrv`; a verb without them has its own."""

    summary: str
    module: str  # its VERBS has the functions of the verb
    examples: Sequence[str] = ()


class VerbFunctions(NamedTuple):
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


STORE_VERBS = "streamsrv.verbs"
BACKUP_VERBS = "streamsrv.tools.backup"
IMPORT_VERBS = "streamsrv.tools.incoming.files_import"
EXPORT_VERBS = "streamsrv.tools.outgoing.export"
# Verbs that run on other platforms than Linux, too.
PORTABLE = ("store", "samples", "export", "pull")

VERBS = {
    "serve": Verb(
        "serve a folder of studies over DICOMweb, in the foreground",
        "streamsrv.serving",
        ("serve --data data", "serve --config /etc/streamsrv/streamsrv.toml --workers 4"),
    ),
    "store": Verb(
        "send files and folders to a DICOMweb server",
        "streamsrv.client",
        (
            "store ~/archive --url http://127.0.0.1:8943/v2",
            "store scan.dcm --url https://pacs.example/v2 --token-file key",
        ),
    ),
    "samples": Verb("write the sample files of the tutorial", "streamsrv.samples", ("samples /tmp/samples",)),
    "check": Verb(
        "verify all bytes and all index rows of a store",
        STORE_VERBS,
        ("check --data data", "check --data data --segments --rate 100M"),
    ),
    "reindex": Verb("rebuild the index of a store from its segments", STORE_VERBS, ("reindex --data data",)),
    "compact": Verb("free the disk space of deleted instances", STORE_VERBS, ("compact --data data --all",)),
    "info": Verb("print numbers and problems of a store", STORE_VERBS, ("info --data data --json",)),
    "backup": Verb(
        "copy a store to a folder, beside a running server; or verify a backup",
        BACKUP_VERBS,
        ("backup /mnt/backup --data data", "backup /mnt/backup --verify"),
    ),
    "restore": Verb(
        "make a store from a backup, in an empty folder", BACKUP_VERBS, ("restore /mnt/backup --data new",)
    ),
    "export": Verb("write stored instances to a folder, with a list of them", EXPORT_VERBS),
    "import": Verb("copy DICOM files, or the storage of Orthanc, into a store", IMPORT_VERBS),
    "pull": Verb("bring studies from another DICOMweb server", "streamsrv.tools.incoming.pull"),
    "move": Verb("move a store to another engine, beside its servers", "streamsrv.tools.incoming.move"),
    "salvage": Verb("write instances from segments alone, without their store", "streamsrv.tools.salvage"),
    "key": Verb(
        "make, list and revoke the keys of clients",
        "streamsrv.tools.keys",
        (
            "key add viewer --rights search,read --where 'InstitutionName=A*' --expires 90d --data data",
            "key change viewer --expires 7d --data data",
            "key list --data data",
            "key revoke viewer --data data",
            "key copy old --data data",
        ),
    ),
    "hook": Verb(
        "send changes to URLs, and print the state of these hooks",
        "streamsrv.tools.hooks",
        (
            "hook add https://ris.example/told --name ris --events complete --data data",
            "hook forward https://pacs.example/dicom-web --name pacs --data data",
            "hook list --data data",
            "hook retry pacs --data data",
            "hook remove pacs --data data",
        ),
    ),
    "settings": Verb(
        "print each setting in force and its source",
        "streamsrv.serving",
        ("settings --config /etc/streamsrv/streamsrv.toml --changed",),
    ),
    "share": Verb(
        "make, list or end links that show one study",
        "streamsrv.tools.shares",
        (
            "share 1.2.840.113619.2.55.3 --expires 12h --pin --data data",
            "share --list --data data",
            "share 1.2.840.113619.2.55.3 --revoke-all --data data",
        ),
    ),
    "audit": Verb(
        "print or verify the audit trail of a store",
        "streamsrv.tools.audit",
        ("audit print --since 2026-01-01 --user anna --data data", "audit verify --data data"),
    ),
    "migrate-index": Verb(
        "bring an index in PostgreSQL to the layout of this version",
        "streamsrv.tools.cluster",
        ("migrate-index --index postgresql://streamsrv@db.example/archive",),
    ),
    "viewer": Verb(
        "install or remove OHIF, a web viewer, at /viewer/",
        "streamsrv.tools.viewer",
        ("viewer install --data data", "viewer remove --data data"),
    ),
}


def functions_of(verb: str) -> VerbFunctions:
    """Imports the module of the verb."""
    return VerbFunctions(*importlib.import_module(VERBS[verb].module).VERBS[verb])


def parser_of(used: str) -> argparse.ArgumentParser:
    """The parser of all verbs, with the arguments of the verb that is used."""
    parser = argparse.ArgumentParser(prog="streamsrv", description="A DICOMweb server that streams.")
    parser.add_argument("--version", action="version", version=f"streamsrv {__version__}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (summary, _, examples) in VERBS.items():
        added = choices.add_parser(verb, help=summary, description=summary.capitalize() + ".")
        if verb == used:
            functions_of(verb).add_arguments(added)
            explain(added, examples)
    return parser


def explain(parser: argparse.ArgumentParser, examples: Sequence[str]) -> None:
    """Ends the help of a verb, and of each of its actions, with examples and the exit codes."""
    actions = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    for name, each in (pair for choices in actions for pair in choices.items()):
        explain(each, [line for line in examples if line.split()[1] == name])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = "".join(f"    streamsrv {line}\n" for line in examples)
    parser.epilog = (parser.epilog or f"Examples:\n\n{lines}") + EXIT_CODES


def entry() -> int:
    """The command `streamsrv`: as `main`, but a verb that maps the index runs in a guarded process."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in MAPPING or config.refuse_platform():
        return main()
    sentence = (
        f"{verb} ended by SIGBUS: a page of the index could not be read, or the disk is full. Run reindex; "
        "if that fails in the same way, move the folder `index` away and run it again"
    )
    return guarded(main, lambda: fail(sentence, FAILED))


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    verb = words[0] if words and words[0] in VERBS else ""
    reason = config.refuse_platform() if verb and verb not in PORTABLE else None
    if reason:
        return fail(reason, USAGE)
    args = parser_of(verb).parse_args(words)
    try:
        return functions_of(verb).run(args)
    except SettingsError as error:
        return fail(error.detail, USAGE)
    except StoreLocked as error:
        return fail(error.detail, LOCKED)
    except StreamsrvError as error:
        return fail(error.detail, FAILED)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:  # `| head` has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return fail(f"{verb} failed, {error.strerror or error}{where}", FAILED)


def fail(sentence: str, code: int) -> int:
    print(f"streamsrv: {sentence}", file=sys.stderr)
    return code


def guarded(run: Callable[[], int], complain: Callable[[], int]) -> int:
    """Returns the exit code of `run`, or of `complain` if SIGBUS ends it. Another signal also ends this
    process. Call it before the process has threads, locks or an open index."""
    parent = os.getpid()
    forwarded = (signal.SIGTERM, signal.SIGHUP)
    # A signal that arrives before its handler is set waits, so that it is never lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *forwarded))
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _run_in_child(run, parent)
    former = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in forwarded:
        former[number] = signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(child, 0)
    _restore(former)
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    if os.WTERMSIG(status) == signal.SIGBUS:
        return complain()
    os.kill(os.getpid(), os.WTERMSIG(status))
    return 128 + os.WTERMSIG(status)  # the signal is blocked


def _run_in_child(run: Callable[[], int], parent: int) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() == parent:
            code = run()
            sys.stdout.flush()
    except SystemExit as error:  # argparse
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
