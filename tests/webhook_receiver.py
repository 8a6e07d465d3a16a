"""A receiver of webhooks, whose answers a test decides."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ReceiverHandler(BaseHTTPRequestHandler):
    def do_POST(self):
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["Content-Length"]))
        receiver.count += 1
        if receiver.keeps_requests:
            receiver.requests.append((dict(self.headers), body))
        status = receiver.status(receiver.count)
        if status == 200:
            receiver.taken.append((self.headers["webhook-id"], json.loads(body)))
        self.send_response(status)
        self.send_header("Location", f"{receiver.url}/redirected")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


class Receiver:
    """`status` gives that of each request by its number. `count` is the number of requests."""

    def __init__(self, *, keeps_requests=True):
        self.count = 0
        self.keeps_requests = keeps_requests
        self.requests, self.taken = [], []
        self.status = lambda number: 200
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), ReceiverHandler)
        self.server.receiver = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def told(self, action):
        """The studies of the events with this action."""
        return {data["studyInstanceUid"] for _, data in self.taken if data["action"] == action}

    def close(self):
        self.server.shutdown()
        self.server.server_close()
