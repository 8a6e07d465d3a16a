"""The web room in process: pytest-tornasync's http_server and http_server_client, over our own Server."""

import asyncio

import pytest
import tornado.ioloop
from web_world import Lines, Raw, World, access_log, settings_of

from streamsrv.web.app import App
from streamsrv.web.connection.listener import Server
from streamsrv.web.connection.stream import Stream


@pytest.fixture
def world():
    return World()


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def settings():
    """Override to change settings for a module or class."""
    return settings_of()


@pytest.fixture
def io_loop():
    """As pytest-tornasync's, without what Tornado has deprecated since."""
    loop = tornado.ioloop.IOLoop(make_current=False)
    asyncio.set_event_loop(loop.asyncio_loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close(all_fds=True)


@pytest.fixture
def ways():
    """Override to authenticate requests."""
    return ()


class TestedServer(Server):
    """Over the streams that Acceptor makes: Tornado's own accepting knows IOStreams only."""

    def handle_stream(self, stream, address):
        super().handle_stream(Stream(stream.socket, max_buffer_size=self.max_buffer_size), address)


@pytest.fixture
def http_server(io_loop, http_server_port, world, lines, settings, ways):
    listener, _ = http_server_port

    async def make():
        app = App(settings, world.actions(), access_log(lines), ways=ways)
        server = TestedServer(app, settings)
        server.add_socket(listener)
        return server

    server = io_loop.run_sync(make)
    yield server

    async def close_clients():
        for raw in Raw.opened:
            await raw.close()
        Raw.opened.clear()

    io_loop.run_sync(close_clients)
    server.stop()
    io_loop.run_sync(server.close_all_connections)
    io_loop.run_sync(lambda: server.app.drain(5))
    server.app.stop()


@pytest.fixture
def port(http_server, http_server_port):
    return http_server_port[1]
