"""Hides packages that only tests use. pydicom imports them where they are: a server starts a sixth faster."""

import os
import sys

for name in ("gdcm", "requests"):
    sys.modules[name] = None

if "LOOP_GUARD" in os.environ and "streamsrv.server" in sys.orig_argv:
    import loop_guard

    loop_guard.start(os.environ["LOOP_GUARD"])
