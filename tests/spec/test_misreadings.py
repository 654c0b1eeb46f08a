"""Each misreading of the texts is caught by a vector: a reference decoder with one line wrong fails it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest

from support.specification import INVALID, SPEC, VALID, VECTORS, base_of, data_of, named

SOURCE = (SPEC / "reference_decoder.py").read_text(encoding="utf-8")
BY_NAME = {named(entry): entry for entry in VALID + INVALID}


class Misreading(NamedTuple):
    """What is read wrong: a line of the reference decoder, the same line wrong, and a vector that catches it."""

    reading: str
    line: str
    wrong: str
    vector: str


TRACK = "return c[i] + (c[i + 1] - c[i]) * ((t - steps[i]) / (steps[i + 1] - steps[i]))"
CODES = "p = p + (q.astype(np.float32) * scale - np.sign(q).astype(np.float32) * shift)"
ORDER = 'if dtype in ("I8", "I16", "I32") else u'
NEITHER = "    if version != 1 or metadata"

MISREADINGS = [
    # FORMAT.md, section 2
    Misreading("entries before the version", NEITHER, "    parse_entries(header, at)\n" + NEITHER, "later-dtype"),
    Misreading("holes before the version", NEITHER, "    parse_entries(header, at)\n" + NEITHER, "requires-hole"),
    Misreading(
        "metadata before the version", NEITHER, "    check_metadata(metadata)\n" + NEITHER, "later-metadata-number"
    ),
    Misreading(
        "producer in all versions", '"requires", "reader")', '"requires", "reader", "producer")', "later-producer"
    ),
    Misreading("reserved in all versions", NEITHER, "    require(reserved == 0, '')\n" + NEITHER, "later-reserved"),
    Misreading(
        "no root's CRC in a later version",
        "require(zlib.crc32(f.data[at : end - 8]) ==",
        "require(version > 1 or",
        "later-root-crc",
    ),
    Misreading(
        "a sign in ignored JSON",
        "        value = finite(word)",
        "        value = finite(word.replace('-', 'x'))",
        "unknown-entries",
    ),
    Misreading("-0 is an integer", 'value if word == "-0" else int(word)', "int(word)", "manifest-minus-zero"),
    # FORMAT.md, section 8
    Misreading(
        "pairs from the last to the first", "range(d.pairs):", "reversed(range(d.pairs)):", "arithmetic-operations"
    ),
    Misreading(
        "p in f64", "p = np.zeros(stop - start, np.float32)", "p = np.zeros(stop - start)", "arithmetic-operations"
    ),
    Misreading(
        "products in f64", "factors[a + j * rows] *", 'factors[a + j * rows].astype("f8") *', "arithmetic-operations"
    ),
    Misreading(
        "fused at the end", "x[start:stop] + p * g", 'x[start:stop] + p.astype("f8") * g', "arithmetic-operations"
    ),
    Misreading(
        "codes in f64",
        CODES,
        'p = p + (q.astype("f8") * scale - np.sign(q) * shift).astype("f4")',
        "arithmetic-operations",
    ),
    Misreading("codes without brackets", CODES, CODES.replace("(q.", "q.").removesuffix(")"), "arithmetic-operations"),
    Misreading("g in f64", "g = np.float32(c)", "g = np.float64(c)", "arithmetic-operations"),
    Misreading(
        "track: two weights",
        TRACK,
        "w = (t - steps[i]) / (steps[i + 1] - steps[i])\n    return c[i] * (1 - w) + c[i + 1] * w",
        "arithmetic-coefficients",
    ),
    Misreading("track: product first", TRACK, TRACK.replace("((t", "(t").removesuffix(")"), "arithmetic-coefficients"),
    Misreading(
        "track: from the right",
        TRACK,
        "return c[i + 1] - (c[i + 1] - c[i]) * ((steps[i + 1] - t) / (steps[i + 1] - steps[i]))",
        "arithmetic-coefficients",
    ),
    Misreading(
        "track: slope first",
        TRACK,
        "return c[i] + (c[i + 1] - c[i]) / (steps[i + 1] - steps[i]) * (t - steps[i])",
        "arithmetic-coefficients",
    ),
    Misreading(
        "track: fused",
        TRACK,
        "from fractions import Fraction as F\n"
        "    return float(F(c[i]) + F(c[i + 1] - c[i]) * F((t - steps[i]) / (steps[i + 1] - steps[i])))",
        "arithmetic-coefficients",
    ),
    Misreading(
        "line: fused",
        "return slope * t + intercept",
        "from fractions import Fraction as F\n    return float(F(slope) * F(t) + F(intercept))",
        "arithmetic-coefficients",
    ),
    Misreading("no overflow", "if not np.isfinite(g):", "if False:", "argument-line-overflow"),
    Misreading(
        "overflow before rounding",
        "if not np.isfinite(g):",
        "if abs(c) > 3.4028234663852887e38:",
        "arithmetic-coefficients",
    ),
    Misreading(
        "framed before the first step",
        "restore(f, index, max(bisect.bisect_right(f.steps, t), 1), base)",
        "read_same(f, index, base) if t < f.steps[0] else restore(f, index, bisect.bisect_right(f.steps, t), base)",
        "framed",
    ),
    Misreading(
        "tier exact wherever frames are",
        "f.has_exact and t in f.steps",
        "f.has_frames and t in f.steps",
        "argument-exact-framed",
    ),
    # FORMAT.md, section 9, and EXACT.md, section 13
    Misreading("an embedded base before a given one", "f.embedded and base is None", "f.embedded", "base-given-bits"),
    Misreading(
        "no digest where no segment holds it",
        "for i, (start, stop) in enumerate(pieces(named.n) if tensor.origin",
        "for i, (start, stop) in enumerate(pieces(named.n) if tensor.segment and tensor.origin",
        "exact-base-not-held-none-10",
    ),
    Misreading(
        "no digest before its first segment",
        "for i, (start, stop) in enumerate(pieces(named.n) if tensor.origin",
        "for i, (start, stop) in enumerate(pieces(named.n) if tensor.segment != 2 and tensor.origin",
        "exact-base-not-held-second-20",
    ),
    Misreading(
        "step 0 not converted",
        "return bits if named.dtype == named.origin_dtype",
        "return bits if len(bits) == named.n * WIDTH[named.dtype]",
        "exact-origin-dtypes",
    ),
    *(
        Misreading(f"{dtype} not shifted", ORDER, ORDER.replace(f'"{dtype}"', '""'), "exact-order-of-words")
        for dtype in ("I8", "I16", "I32")
    ),
    *(
        Misreading(f"{dtype} shifted", ORDER, ORDER.replace('"I8"', f'"I8", "{dtype}"'), "exact-order-of-words")
        for dtype in ("U8", "U16", "U32", "I64", "U64", "F64", "F8_E8M0")
    ),
    # EXACT.md, section 14
    Misreading(
        "steps from the left end",
        "k = abs((i.left + i.right) // 2 - i.near)",
        "k = (i.left + i.right) // 2 - i.left",
        "exact-odd",
    ),
    Misreading(
        "beyond the left end first",
        "(2 - sign * after, 2 - sign * before)",
        "(2 - sign * before, 2 - sign * after)",
        "exact-steps-17",
    ),
    Misreading(
        "outer movements of quiet words",
        "before = [outer if a != b else 0 for",
        "before = [outer for",
        "exact-steps-17",
    ),
    Misreading(
        "refills until there is room", "        if x < 1 << 32 and", "        while x < 1 << 32 and", "exact-streams"
    ),
]


@pytest.fixture
def altered(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The reference decoder with one line wrong."""
    misreading: Misreading = request.param
    assert SOURCE.count(misreading.line) == 1, "the line of the reference decoder is another one"
    module = ModuleType("misread")
    sys.modules[module.__name__] = module
    exec(compile(SOURCE.replace(misreading.line, misreading.wrong), module.__name__, "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def gives(ref: ModuleType, name: str) -> bool:
    """Whether a decoder gives what the manifest says for a vector."""
    entry = BY_NAME[name]
    path = base_of(entry)
    try:
        file, base = ref.RelexFile(data_of(entry)), None if path is None else ref.read_safetensors(path)
        if "error" not in entry:
            file.check_all()
            return all(
                hashlib.sha256(file.tensor(tensor, read["step"], read["tier"], base)).hexdigest() == digest
                for read in entry["reads"]
                for tensor, digest in read["tensors"].items()
            )
        if entry["operation"] == "verify":
            file.check_all()
        elif entry["operation"] == "read":
            file.tensor(entry["tensor"], entry["step"], entry["tier"], base)
    except ref.RelexError as error:
        return type(error).__name__ == entry.get("error")
    return False


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("altered", "vector"),
    [pytest.param(one, one.vector, id=one.reading) for one in MISREADINGS],
    indirect=["altered"],
)
def test_a_vector_catches(altered: ModuleType, vector: str) -> None:
    assert not gives(altered, vector)


def test_the_texts_as_they_are_meant() -> None:
    """What the tests above call wrong is right without the wrong line; and all the vectors are there."""
    from support.specification import ref

    for vector in {one.vector for one in MISREADINGS}:
        assert gives(ref, vector), vector
    assert VECTORS.is_dir()
