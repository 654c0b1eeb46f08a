"""spec/ and spec/vectors are on the path of the tests of this folder."""

import support.specification  # noqa: F401
