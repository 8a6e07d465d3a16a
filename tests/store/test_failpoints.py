import os
import signal
import subprocess
import sys
import time

import pytest

from streamsrv.store import failpoints
from streamsrv.store.failpoints import POINTS, Failpoint

SCRIPT = """
from streamsrv.store import failpoints
for name in ("mid-body", "mid-body", "after-commit"):
    print(name, flush=True)
    failpoints.hit(name)
"""


def run(**environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_unset_it_does_nothing():
    assert "STREAMSRV_FAILPOINT" not in os.environ
    for name in POINTS:
        failpoints.hit(name)
    done = run()
    assert (done.returncode, len(done.stdout.split())) == (0, 3)


@pytest.mark.parametrize(("spec", "lines"), [("mid-body", 1), ("mid-body@2", 2), ("after-commit=kill", 3)])
def test_kill(spec, lines):
    done = run(STREAMSRV_FAILPOINT=spec)
    assert (done.returncode, len(done.stdout.split())) == (-signal.SIGKILL, lines)


def test_kill_only_once(tmp_path):
    spec = {"STREAMSRV_FAILPOINT": "mid-body", "STREAMSRV_FAILPOINT_ONCE": str(tmp_path / "marker")}
    assert [run(**spec).returncode for _ in range(2)] == [-signal.SIGKILL, 0]


def test_pause():
    point = Failpoint("in-delete@2=pause:0.2")
    started = time.monotonic()
    point.passed("in-delete")
    point.passed("mid-body")
    assert time.monotonic() - started < 0.1
    point.passed("in-delete")
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("spec", ["nowhere", "mid-body=explode", "mid-body@x", "mid-body=pause:x"])
def test_a_wrong_spec_is_an_error(spec):
    with pytest.raises(ValueError):
        Failpoint(spec)
