"""Commands as a person starts them."""

from __future__ import annotations

import sys

IN_A_TERMINAL = (
    sys.executable,
    "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])",
)
"""Before a command: a test run in the background ignores SIGINT, and what it starts would with it."""
