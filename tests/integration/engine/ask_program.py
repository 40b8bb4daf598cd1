"""A trainer for the tests that publishes nothing: asks a fresh engine. ``python -m tests.integration.engine.ask_program
OUT.json``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from launcher.inference.client import api_key, wait_ready
from tests.integration.engine.questions import greedy

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps([greedy(url, api_key()) for url in wait_ready()]))
