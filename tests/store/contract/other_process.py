"""A process that opens the same store and makes the calls that a test sends it."""

import multiprocessing
from collections.abc import Iterator


def serve(connection, engine):
    """Answer calls until the other end closes."""
    store = None
    while True:
        try:
            path, arguments, named = connection.recv()
        except EOFError:
            return
        try:
            if path == ("open",):
                store, result = engine(*arguments).open(read_only=True), None
            elif path == ("close",):
                store, result = store and store.close(), None
            else:
                target = store
                for name in path:
                    target = getattr(target, name)
                result = target(*arguments, **named)
            connection.send((None, list(result) if isinstance(result, Iterator) else result))
        except Exception as error:
            connection.send((error, None))


class OtherProcess:
    def __init__(self, engine):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, engine), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, path, *arguments, **named):
        self._connection.send((path, arguments, named))
        error, result = self._connection.recv()
        if error is not None:
            raise error
        return result

    def end(self):
        self._connection.close()
        self._process.join()


class Calls:
    """`calls.index.segment(1)` is made by the other process."""

    def __init__(self, process, path=()):
        self._process = process
        self._path = path

    def __getattr__(self, name):
        return Calls(self._process, (*self._path, name))

    def __call__(self, *arguments, **named):
        return self._process.call(self._path, *arguments, **named)
