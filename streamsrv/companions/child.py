"""The start of a companion's program, in its own process."""

from __future__ import annotations

import signal

from streamsrv import config
from streamsrv.options import start_log
from streamsrv.settings import Settings
from streamsrv.supervisor import protect

# The supervisor writes the settings, and then nothing. The end of this pipe means that the supervisor has
# ended.
STDIN = 0


def begin(*ignored: signal.Signals) -> Settings:
    """Protects this process, receives its settings and starts its log. `ignored` are signals that reach
    every process of a terminal (Ctrl-C) or of a service."""
    protect()
    settings = config.receive(STDIN)
    start_log(settings)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    return settings
