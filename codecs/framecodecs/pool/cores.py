"""How many cores a library may use for the frame at hand. The pool says so with each order: all of them while
nothing else is under way, one as soon as somebody else wants his frame too.

Only libraries whose output does not depend on it ask: OpenJPEG codes blocks of a frame apart.
"""

from __future__ import annotations

_allowed = [1]


def allow(count: int) -> None:
    _allowed[0] = max(1, count)


def allowed() -> int:
    return _allowed[0]
