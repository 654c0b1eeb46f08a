"""Writes the journals: python -m journals [DIRECTORY], in spec/journal."""

import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path.append(str(HERE.parent))

from .make import make  # noqa: E402 (it needs the line above)

make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
