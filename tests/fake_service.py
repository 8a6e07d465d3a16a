"""A DICOMweb service whose answers are a script, and small files to send to it."""

import contextlib
import email
import email.policy
import http.server
import io
import json
import socket
import threading

import pydicom

from streamsrv import samples


class ScriptedHandler(http.server.BaseHTTPRequestHandler):
    """For services with their own `do_GET`."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, kind, body, *headers, sent=1.0):
        """`sent` is the share of the body that is sent before the connection ends."""
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: int(len(body) * sent)])
        self.close_connection = sent < 1

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(handler):
    """A service with this handler, and its URL."""
    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    service.url = f"http://127.0.0.1:{service.server_address[1]}"
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


class FakeService(http.server.ThreadingHTTPServer):
    """Answers each request with the next row of `script`; the last row serves all that follow. Keeps the
    bodies' parts."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.script = list(script)
        self.requests = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v2"

    def next_row(self):
        with self.lock:
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request, client_address):
        """Connections are cut off here on purpose."""


class FakeHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    row = None

    def handle_expect_100(self):
        self.row = self.server.next_row()
        if self.row.get("early"):
            return True  # no 100: the final answer comes from do_POST, before the body
        return super().handle_expect_100()

    def do_POST(self):
        row = self.server.next_row() if self.row is None else self.row
        self.row = None
        head = b"".join(f"{name}: {value}\r\n".encode() for name, value in self.headers.items())
        if row.get("early"):
            self.close_connection = True
            parts = []
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = email.message_from_bytes(head + b"\r\n" + body, policy=email.policy.HTTP)
            parts = [part.get_payload(decode=True) for part in message.iter_parts()]
        self.server.requests.append((self.path, dict(self.headers), parts))
        if row.get("cut"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        answer = row.get("answer", stored_all)
        payload = answer(parts) if callable(answer) else answer
        self.send_response(row.get("status", 200))
        for name, value in row.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args):
        pass


def uids_of(parts):
    return [str(pydicom.dcmread(io.BytesIO(part), stop_before_pixels=True).SOPInstanceUID) for part in parts]


def item(uid="", reason=None, comment=None):
    dataset = {"00081155": {"vr": "UI", "Value": [uid]}} if uid else {}
    if reason is not None:
        dataset["00081197"] = {"vr": "US", "Value": [reason]}
    if comment is not None:
        dataset["00741048"] = {"vr": "SQ", "Value": [{"00000902": {"vr": "LO", "Value": [comment]}}]}
    return dataset


def response(stored=(), failed=()):
    dataset = {}
    if failed:
        dataset["00081198"] = {"vr": "SQ", "Value": list(failed)}
    if stored:
        dataset["00081199"] = {"vr": "SQ", "Value": [item(uid) for uid in stored]}
    return json.dumps(dataset).encode()


def stored_all(parts):
    return response(stored=uids_of(parts))


@contextlib.contextmanager
def running(*script, context=None):
    """A service that answers by the rows of `script`; over TLS if there is a context."""
    service = FakeService(*(script or ({},)))
    if context is not None:
        service.socket = context.wrap_socket(service.socket, server_side=True)
        service.url = service.url.replace("http:", "https:")
    threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()


def write_instance(path, uid, size=1000):
    instance = samples.dataset(samples.SAMPLES[0])
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = uid
    instance.PixelData = bytes(size)
    pydicom.dcmwrite(path, instance, enforce_file_format=True)
    return path
