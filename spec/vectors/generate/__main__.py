"""Writes all vectors and their manifest into a directory: `spec/vectors`, or the one that is named."""

import sys
from pathlib import Path

from .make import make

make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
