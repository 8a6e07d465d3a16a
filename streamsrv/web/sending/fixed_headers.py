"""Headers that the settings add to answers."""

from __future__ import annotations

from streamsrv.settings import Settings
from streamsrv.wire.answers import Answer


def hsts(settings: Settings) -> list[tuple[str, str]]:
    """RFC 6797 7.2: only over TLS."""
    seconds = settings.hsts_max_age if settings.tls_certificate else 0
    return [("Strict-Transport-Security", f"max-age={seconds}")] if seconds else []


def let_cache(max_age: int, answer: Answer) -> Answer:
    """By default a cache asks each time. With `max_age` it trusts its copy for so many seconds."""
    if max_age:
        answer.headers = [
            (name, f"private, max-age={max_age}")
            if name.lower() == "cache-control" and "no-cache" in value
            else (name, value)
            for name, value in answer.headers
        ]
    return answer
