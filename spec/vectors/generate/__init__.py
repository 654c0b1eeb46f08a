"""Makes the files of `spec/vectors`: valid ones with what decoding gives, invalid ones with the error they call for.

    cd spec/vectors
    python -m generate [DIRECTORY]

Nothing here is shared with the package: files are laid out after FORMAT.md and EXACT.md by plain code, and what they
decode to is computed by the reference decoder. Everything comes from names through SHAKE-256, so that the same
zstandard gives the same bytes anywhere. Invalid files are valid ones with one rule broken, and all checksums that are
not meant right again.
"""

import sys
from pathlib import Path

SPEC = Path(__file__).parents[2]
if str(SPEC) not in sys.path:
    sys.path.append(str(SPEC))  # where the reference decoder is
