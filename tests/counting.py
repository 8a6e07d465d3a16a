"""What coverage counts.

While it counts, all Python code in the process of a test is 2.5 times as slow, also that of pytest, clients
and reference decoders. So coverage rests while tests are collected, and in modules that only reach a server
from outside. The mark `no_cover` excludes single tests that pass the same lines again and again.
"""

import importlib
import pkgutil

import pytest

import framecodecs
import streamsrv

SOURCES = (streamsrv, framecodecs)
# Folders whose tests talk to whole servers, and of which no test, or not each one, calls the sources.
CLIENTS, WHOLE_SERVERS = "clients", "tests"


def load_sources():
    """Each module, so that its definitions are counted before tests import it."""
    for package in SOURCES:
        for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not each.name.endswith("__main__"):
                importlib.import_module(each.name)


def is_of_sources(value):
    """Whether something in the namespace of a test is a module of the sources, or was defined by one."""
    name = getattr(value, "__module__", None) or getattr(value, "__name__", None)
    return isinstance(name, str) and name.split(".")[0] in {each.__name__ for each in SOURCES}


def counts(module, folder):
    """Whether the tests of a module call the sources in their own process. `verb` is a verb of the command
    line."""
    if folder == WHOLE_SERVERS:
        names = vars(module)
        return "verb" in names or any(map(is_of_sources, names.values()))
    return folder != CLIENTS


class Counting:
    """A plugin beside pytest-cov, whose controller it stops and starts."""

    def __init__(self, controller):
        self._controller = controller
        self._counted = {}

    def _set(self, wanted):
        if wanted != self._controller.started:
            (self._controller.resume if wanted else self._controller.pause)()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self):
        load_sources()
        self._set(False)
        try:
            return (yield)
        finally:
            self._set(True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if item.path not in self._counted:
            self._counted[item.path] = counts(item.module, item.path.parent.name)
        self._set(self._counted[item.path])
        return (yield)
