"""Requests as a browser makes them: Fetch Metadata and a jar of cookies, without redirects."""

import contextlib
import http.client
import json
from http.cookies import SimpleCookie

PAGE = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
JSON = {"Content-Type": "application/json"}


class Browser:
    """Asks on a new connection each time, so all workers answer. `last` is the last Set-Cookie."""

    def __init__(self, site, headers=PAGE):
        self.site = site
        self.headers = headers
        self.jar = {}
        self.last = ""

    @property
    def cookie(self):
        return "; ".join(f"{name}={value}" for name, value in self.jar.items())

    @cookie.setter
    def cookie(self, text):
        self.jar = dict(pair.split("=", 1) for pair in text.split("; ") if pair)

    def ask(self, method="GET", path="/v2/studies", body=None, **headers):
        named = {name.replace("_", "-"): each for name, each in headers.items()}
        sent = self.headers | ({"Cookie": self.cookie} if self.jar else {}) | named
        if body is not None:
            sent = JSON | sent
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.site.port, timeout=20)) as one:
            one.request(method, path, body, sent)
            answer = one.getresponse()
            answer.body = answer.read()
        for text in answer.headers.get_all("Set-Cookie", ()):
            self.last = text
            for name, morsel in SimpleCookie(text).items():
                self.jar[name] = morsel.value
                if not morsel.value:
                    del self.jar[name]
        return answer

    def sign_in(self, **proof):
        return self.ask("POST", "/session", proof)

    def facts(self):
        return json.loads(self.ask(path="/page/server.json").body)
