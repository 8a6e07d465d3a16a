"""An OpenID Connect issuer in this process: metadata, keys, tokens, a token endpoint, and faults."""

import base64
import contextlib
import http.server
import json
import ssl
import threading
import time
from urllib.parse import parse_qsl

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

AUDIENCE = "streamsrv"


class FakeIssuer:
    """`fault` is a function of the request handler that answers instead. `requests` has the paths."""

    def __init__(self, issued=None):
        """With a certificate it speaks TLS."""
        self.requests = []
        self.forms = []
        self.fault = None
        self.tokens = {}  # answers of the token endpoint by grant_type
        self.keys = {}
        self.rotate("1")
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.answer(self)

            do_POST = do_GET

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if issued is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(issued.certificate, issued.key)
            self.server.handle_error = lambda request, address: None  # a client that does not trust it
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' if issued else ''}://127.0.0.1:{self.server.server_port}/realms/clinic"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def rotate(self, key_id):
        """From now on this key signs; older ones are gone."""
        self.keys = {key_id: rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    def metadata(self):
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "end_session_endpoint": f"{self.url}/logout",
        }

    def key_set(self):
        public = jwt.algorithms.RSAAlgorithm.to_jwk
        return {
            "keys": [
                public(key.public_key(), as_dict=True) | {"kid": name} for name, key in self.keys.items()
            ]
        }

    def answer(self, handler):
        length = int(handler.headers.get("content-length", 0))
        body = handler.rfile.read(length)
        self.requests.append(handler.path)
        if self.fault is not None:
            with contextlib.suppress(OSError):  # the client has left
                self.fault(handler)
        else:
            self.answer_well(handler, body)

    def answer_well(self, handler, body):
        path = handler.path.removeprefix("/realms/clinic")
        if path == "/token":
            form = dict(parse_qsl(body.decode()))
            self.forms.append((form, handler.headers.get("authorization")))
            found = self.tokens.get(form.get("grant_type"))
            found = found() if callable(found) else found
            reply(handler, found or {"error": "invalid_grant"}, 200 if found else 400)
        elif path == "/.well-known/openid-configuration":
            reply(handler, self.metadata())
        else:
            reply(handler, self.key_set())

    def token(self, key_id=None, key=None, header=None, **more):
        """An access token; a claim that is None is left out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "anna", "iat": now, "exp": now + 300, "scope": "x"}
        claims = {name: value for name, value in (usual | more).items() if value is not None}
        key_id = key_id or next(iter(self.keys))
        return jwt.encode(claims, key or self.keys[key_id], "RS256", {"kid": key_id} | (header or {}))

    def with_header(self, header, token):
        """The token with another header, and a signature that does not belong to it."""
        text = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
        return ".".join([text, *token.split(".")[1:]])


def reply(handler, document, status=200):
    text = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)


@contextlib.contextmanager
def fake_issuer(issued=None):
    issuer = FakeIssuer(issued)
    try:
        yield issuer
    finally:
        issuer.close()
