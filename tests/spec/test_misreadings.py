"""Each misreading of the texts is caught by a vector: a reference decoder with one line wrong fails it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest

from support.specification import INVALID, SPEC, VALID, VECTORS, base_files, base_of, data_of, named
from support.versions import NUMPY

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
    # FORMAT.md, section 4
    Misreading("parts of words", "words & JSON_WORDS", "[w for w in JSON_WORDS if w in stem]", "file-json-word"),
    Misreading("one list of words", "words & MODEL_WORDS", "words & (MODEL_WORDS | JSON_WORDS)", "file-model-json"),
    Misreading("dots alone part words", '"[._-]"', '"[.]"', "file-names"),
    Misreading("any text", 'return not words & {"adapter", "index"} and', "return", "file-index-text"),
    Misreading("capitals as they are", "may_be_file(last.lower())", "may_be_file(last)", "file-names"),
    Misreading("devices as they are", "DEVICE.fullmatch(name.lower())", "DEVICE.fullmatch(name)", "file-device-con"),
    Misreading("devices without an ending", "[0-9])(\\..*)?", "[0-9])", "file-device-nul"),
    Misreading("no versions of .model", 'if re.fullmatch(r"v[0-9]{1,3}", end) and', "if False and", "file-names"),
    Misreading("any version of .model", '"v[0-9]{1,3}"', '"v.*"', "file-model-version"),
    Misreading("any folder", "folders[0] in FOLDERS", "len(folders[0]) > 0", "file-folder"),
    Misreading("folders in capitals", "folders[0] in FOLDERS", "folders[0].lower() in FOLDERS", "file-folder-capitals"),
    Misreading("adapters anywhere", "return shards == ADAPTER_WEIGHTS", "return True", "adapter-other"),
    Misreading(
        "adapters among others",
        "return shards == ADAPTER_WEIGHTS",
        "return ADAPTER_WEIGHTS[0] in shards",
        "adapter-two",
    ),
    Misreading("one dtype a name", "{(named.name, named.dtype) for", "{named.name for", "layouts"),
    Misreading(
        "one name in all layouts",
        "require(len(names_of(f, layout)) == len(numbers),",
        "require(len({named.name for named in f.manifest}) == len(f.manifest),",
        "layouts",
    ),
    Misreading(
        "files that differ in all layouts",
        "for i in layout.files]\n",
        "for i in range(len(f.files))]\n",
        "files-by-step",
    ),
    Misreading("the layout of the last step", "== f.layout_of[f.observed - 1]", "== f.layout_of[-1]", "layouts"),
    Misreading("directories as they are", 'path.lower() + "/"', 'path + "/"', "directory-case"),
    Misreading("steps without a directory", 'f"global_step_{t}" if row', 'f"?{t}" if row', "directory-step"),
    Misreading("directories in each other", "any(b.startswith(a) for a", "any(b == a for a", "directory-inside"),
    Misreading("beginnings of names", 'path.lower() + "/"', "path.lower()", "directories"),
    Misreading("all of a SHA-256", "hexdigest()[:32] != file.digest", "hexdigest() != file.digest", "files-by-step"),
    Misreading(
        "documents stay",
        "if file.digest is not None and (content is None or",
        "if content is None or (file.digest is not None and",
        "files-of-the-base",
    ),
    Misreading(
        "errors turned round", 'shape = [2, rows["relex.steps"]]', 'shape = [rows["relex.steps"], 2]', "figures"
    ),
    Misreading(
        "norms of directions alone",
        '[rows["relex.tensors"] + rows["relex.directions"]]',
        '[rows["relex.directions"]]',
        "minimal",
    ),
    # FORMAT.md, section 5
    Misreading("ties read as they are", "int(tensor.first) if tensor.kind == TIED else index", "index", "tied"),
    Misreading("ties of ties", "require(target.kind != TIED,", "require(True,", "tied-target-tied"),
    # FORMAT.md, section 8
    Misreading("step 0 is the base", "if t == 0 and all(target", "if t == 0 or all(target", "step-0-tied"),
    Misreading(
        "another name starts from the base", "[f.tensors[f.target(index)] for", "[f.tensors[index] for", "step-0-tied"
    ),
    Misreading(
        "what other steps have", "for index in f.index.values()]", "for index in range(len(f.tensors))]", "step-0-base"
    ),
    Misreading("step 0 is no stored step", "    if stored:\n", "    if stored and t != 0:\n", "step-0-stored"),
    Misreading(
        "floats are held", "if in_frames and named.dtype in", "if False and named.dtype in", "argument-framed-line"
    ),
    Misreading("three dtypes are floats", "named.dtype in ALL_FLOATS", "named.dtype in FLOAT", "argument-framed-track"),
    Misreading(
        "codes of scales are no floats",
        "named.dtype in ALL_FLOATS",
        'named.dtype in ALL_FLOATS and named.dtype != "F8_E8M0"',
        "argument-framed-auto",
    ),
    Misreading("nothing is held", "named.dtype in ALL_FLOATS and", "", "framed"),
    Misreading(
        "the layout of a step in every tier",
        'if tier == "exact" else self.layout]',
        "if t in self.steps else self.layout]",
        "layouts",
    ),
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
    Misreading("sources from their beginning", "[WIDTH[dtype] * source.first :", "[:", "sources-ranges"),
    Misreading("sources in bytes", "[WIDTH[dtype] * source.first :", "[source.first :", "sources-ranges"),
    Misreading(
        "only the number of elements",
        "if (found, list(shape)) != (dtype, source.shape):",
        "if found != dtype:",
        "base-sources-shape",
    ),
    Misreading(
        "sources as they lie in the base",
        "for source in named.sources)",
        "for source in sorted(named.sources, key=lambda s: s.first))",
        "sources-concatenated",
    ),
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
            given = base_files(entry)
            for read in entry["reads"]:
                where = read["step"], read["tier"]
                if list(read["tensors"]) != list(ref.names_of(file, file.layout_at(*file.at(*where)))):
                    return False
                for other, digest in read.get("checkpoint", {}).get("files", {}).items():
                    content = file.file(other, *where, given)
                    if (None if content is None else hashlib.sha256(content).hexdigest()) != digest:
                        return False
            return all(
                hashlib.sha256(file.tensor(tensor, read["step"], read["tier"], base)).hexdigest() == digest
                for read in entry["reads"]
                for tensor, digest in read["tensors"].items()
            )
        if entry["operation"] == "verify":
            file.check_all()
        elif entry["operation"] == "file":
            file.file(entry["file"], entry["step"], entry["tier"], base_files(entry))
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
def test_a_vector_catches(altered: ModuleType, vector: str, request: pytest.FixtureRequest) -> None:
    if NUMPY < (2, 0) and "g in f64" in request.node.name:
        pytest.skip("numpy 1 multiplies float32 by a float64 scalar in float32")
    assert not gives(altered, vector)


def test_the_texts_as_they_are_meant() -> None:
    """What the tests above call wrong is right without the wrong line; and all the vectors are there."""
    from support.specification import ref

    for vector in {one.vector for one in MISREADINGS}:
        assert gives(ref, vector), vector
    assert VECTORS.is_dir()
