"""The files of spec/vectors: the package and the reference decoder agree with their manifest, bit for bit."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zstandard
from click.testing import CliRunner

import relex_codec
from relex_codec.decoding.base_locator import BaseLocator
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import RelexError
from relex_codec.kernels.cpu import launch
from relex_codec.kernels.interface import Coefficients, Decode, DecodeJob, Prepare, Targets

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors"
MANIFEST: dict[str, Any] = json.loads((VECTORS / "manifest.json").read_text())
VALID: list[dict[str, Any]] = MANIFEST["valid"]
INVALID: list[dict[str, Any]] = MANIFEST["invalid"]


def load(name: str) -> ModuleType:
    """A script of spec/, which belongs to no package."""
    module_name = f"relex_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, SPEC / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name]


ref = load("reference_decoder")


def named(entry: dict[str, Any]) -> str:
    """The name of a test."""
    return Path(entry["path"]).stem


def base_of(entry: dict[str, Any]) -> Path | None:
    """Where the base of a file is."""
    base = entry["base"]
    return None if base is None else VECTORS / (base if isinstance(base, str) else base["path"])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- The corpus ----


def test_the_manifest_lists_what_is_there() -> None:
    listed = {"manifest.json"}
    for entry in VALID + INVALID:
        listed.add(entry["path"])
        assert sha256((VECTORS / entry["path"]).read_bytes()) == entry["sha256"]
        if isinstance(entry["base"], dict):
            listed.add(entry["base"]["path"])
            assert sha256((VECTORS / entry["base"]["path"]).read_bytes()) == entry["base"]["sha256"]
    there = {path.relative_to(VECTORS).as_posix() for path in VECTORS.rglob("*") if path.is_file()}
    assert there == listed
    assert len(VALID) >= 14 and len(INVALID) >= 25
    assert len(VALID) + len(INVALID) == len({entry["path"] for entry in VALID + INVALID})
    assert sum((VECTORS / path).stat().st_size for path in listed) < 1_500_000


def test_every_packing_dtype_and_codec_occurs() -> None:
    packings, dtypes, codecs, kinds, ranks, counts = set(), set(), set(), set(), set(), set()
    for entry in VALID:
        file = ref.RelexFile((VECTORS / entry["path"]).read_bytes())
        packings |= {(d.packing, d.r > 0) for d in file.directions}
        dtypes |= {named.dtype for named in file.manifest} | {named.origin_dtype for named in file.manifest}
        codecs |= {chunk.codec for chunk in file.chunks}
        kinds |= {(tensor.kind, tensor.origin, file.embedded) for tensor in file.tensors}
        ranks |= {len(named.shape) for named in file.manifest}
        counts |= {tensor.k for tensor in file.tensors}
    assert packings >= {(p, r) for p in range(7) for r in (False, True)} - {(0, False)}
    assert dtypes == set(ref.WIDTH) and codecs == {0, 1, 2}
    assert kinds >= {(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, False), (2, 0, False), (2, 2, False)}
    assert kinds >= {(0, 0, True), (1, 0, True), (2, 0, True)}
    assert ranks >= {0, 1, 2, 3, 4} and counts >= {0, 1, 2, 3}


def test_everything_of_the_exact_tier_occurs() -> None:
    """Numbers of steps and segments, left ends, codings, lanes, contexts of every family, and sizes of all kinds."""
    steps, lefts, counts, codings, lanes, families, groups, since, dense = (set() for _ in range(9))
    first_of = load("exact_encoder").by_family
    for entry in VALID:
        file = ref.RelexFile((VECTORS / entry["path"]).read_bytes())
        if not file.exact:
            continue
        steps.add(len(file.steps))
        since |= {
            (tensor.kind, tensor.segment, named.n == 0)
            for tensor, named in zip(file.tensors, file.manifest, strict=True)
        }
        for k, segment in enumerate(file.segments):
            inside = segment.left not in (0, *(other.before + other.count for other in file.segments))
            lefts.add("origin" if segment.left == 0 else "inside" if inside else "end")
            counts.add(segment.count)
            groups.add(segment.groups)
            for group, parts in enumerate(file.groups[k]):
                _, models = ref.read_models(file, k, group)
                dense |= {model.dense for model in models}
                tables = (enumerate(model.contexts) for model in models)
                families |= {first_of(context) for own in tables for context, table in own if table != ref.NO_TABLE}
                for step in range(1, segment.count + 1):
                    for part, found in zip(parts, ref.read_frame(file, k, group, step), strict=True):
                        codings.add((found.coding, len(found.stream) > 0))
                        lanes.add(part.stop - part.start >= ref.LANES_FROM and len(found.stream) >= 32)
    assert steps >= {1, 2, 3, 5, 17} and counts >= {1, 2, 3, 17} and groups >= {0, 1, 2, 7}
    assert lefts == {"origin", "end", "inside"} and dense == set(range(17))
    assert codings == {(0, False), (0, True), (1, True)} and lanes == {False, True}
    assert len(families) == 14
    assert since >= {
        (kind, segment, False) for kind, segment in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 4)]
    }
    assert since >= {(0, 0, True), (2, 0, True)}


def test_the_script_makes_the_same_files(tmp_path: Path) -> None:
    if MANIFEST["zstandard"] != zstandard.__version__:
        pytest.skip(f"made with zstandard {MANIFEST['zstandard']}, this is {zstandard.__version__}")
    load("make_vectors").make(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    there = {path.relative_to(VECTORS): path.read_bytes() for path in VECTORS.rglob("*") if path.is_file()}
    assert made.keys() == there.keys()
    assert [path for path in made if made[path] != there[path]] == []


# ---- Valid files ----


@pytest.mark.parametrize("entry", VALID, ids=named)
def test_valid_by_the_reference_decoder(entry: dict[str, Any]) -> None:
    file = ref.RelexFile((VECTORS / entry["path"]).read_bytes())
    file.check_all()
    base = base_of(entry)
    given = None if base is None else ref.read_safetensors(base)
    for read in entry["reads"]:
        assert list(read["tensors"]) == list(file.index)
        for name, digest in read["tensors"].items():
            assert sha256(file.tensor(name, read["step"], read["tier"], given)) == digest, (name, read["step"])


@pytest.mark.parametrize("entry", VALID, ids=named)
def test_valid_by_the_package(entry: dict[str, Any]) -> None:
    with relex_codec.open(VECTORS / entry["path"], base=base_of(entry)) as run:
        run.verify()
        for read in entry["reads"]:
            assert run.keys() == list(read["tensors"])
            for name, digest in read["tensors"].items():
                bits = run.bits(name, read["step"], read["tier"])
                assert bits.size == run.entry(name).size
                assert sha256(bits.tobytes()) == digest, (name, read["step"], read["tier"])


def by_torch(jobs: Sequence[DecodeJob]) -> Decode:
    """torch's operations, for arrays of numpy: the way to a device and back."""
    from relex_codec.decoding.device_transfer import DeviceMemory
    from relex_codec.kernels import torch_eager

    memory = DeviceMemory("cpu")
    decode = torch_eager.prepare([memory.job(job) for job in jobs])

    def through(coefficients: Coefficients, targets: Targets) -> None:
        made = [[memory(target) for target in of_job] for of_job in targets]
        decode(coefficients, made)
        for of_job, found in zip(targets, made, strict=True):
            for target, tensor in zip(of_job, found, strict=True):
                target[:] = tensor.numpy().view(target.dtype)

    return through


@pytest.mark.parametrize("prepare", [launch.prepare, by_torch], ids=["cpu", "torch"])
@pytest.mark.parametrize("entry", VALID, ids=named)
def test_valid_by_each_kernel(entry: dict[str, Any], prepare: Prepare) -> None:
    """The reference kernel reads them above: they are small."""
    with relex_codec.open(VECTORS / entry["path"], base=base_of(entry)) as run:
        decoder = TensorDecoder(run.container, BaseLocator(run.container, base_of(entry), None), prepare=prepare)
        for read in entry["reads"]:
            tier = run.tier(read["step"], read["tier"])
            for name, digest in read["tensors"].items():
                bits = decoder.read(run.entry(name), StepTier(read["step"], tier))
                assert sha256(bits.tobytes()) == digest, (name, read["step"])


@pytest.mark.parametrize("entry", VALID, ids=named)
def test_ranges_of_elements_are_those_of_the_whole(entry: dict[str, Any]) -> None:
    read = entry["reads"][0]
    with relex_codec.open(VECTORS / entry["path"], base=base_of(entry)) as run:
        for name in read["tensors"]:
            n = run.entry(name).size
            whole = run.bits(name, read["step"], read["tier"])
            for lo, hi in {
                (0, n),
                (n // 3, n // 2),
                (max(0, n - 1), n),
                (min(n, (1 << 18) - 1), min(n, (1 << 18) + 1)),
            }:
                assert np.array_equal(run.bits(name, read["step"], read["tier"], lo, hi), whole[lo:hi])


@pytest.mark.parametrize("entry", VALID, ids=named)
def test_the_command_verifies(entry: dict[str, Any]) -> None:
    base = base_of(entry)
    command = importlib.import_module("relex_codec.cli.verify").command
    arguments = [str(VECTORS / entry["path"]), *([] if base is None else ["--base", str(base)])]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output


def test_a_base_that_is_given_goes_before_an_embedded_one(tmp_path: Path) -> None:
    """The vectors of embedded bases, read with that base, and with another one."""
    path = VECTORS / "valid" / "embedded.relex"
    entry = next(entry for entry in VALID if entry["path"].endswith("/embedded.relex"))
    good = load("make_vectors").VALID["embedded"].tensors[:4]
    base = tmp_path / "base.safetensors"
    base.write_bytes(load("make_vectors").safetensors(good))
    file, given = ref.RelexFile(path.read_bytes()), ref.read_safetensors(base)
    with relex_codec.open(path, base=base) as run:
        for read in entry["reads"]:
            for name, digest in read["tensors"].items():
                assert sha256(run.bits(name, read["step"], read["tier"]).tobytes()) == digest
                assert sha256(file.tensor(name, read["step"], read["tier"], given)) == digest
    data = bytearray(base.read_bytes())
    data[-1] ^= 1
    base.write_bytes(data)
    with relex_codec.open(path, base=base) as run, pytest.raises(relex_codec.BaseMismatch):
        run.bits("b.count", 0)
    with pytest.raises(ref.BaseMismatch):
        file.tensor("b.count", 0, "auto", ref.read_safetensors(base))


def test_tiers_of_the_exact_vectors() -> None:
    """What `auto` is, and what the exact tier does not have."""
    path, base = VECTORS / "valid" / "exact-moving.relex", VECTORS / "valid" / "exact-moving.safetensors"
    file, given = ref.RelexFile(path.read_bytes()), ref.read_safetensors(base)
    tiers = {0: "base", 4: "exact", 5: "track", 7.5: "track", 10: "exact", 15: "line", 20: "exact", 21: "line"}
    with relex_codec.open(path, base=base) as run:
        assert {step: run.tier(step) for step in tiers} == tiers
        for step, tier in tiers.items():
            for name in file.index:
                own = file.tensor(name, step, "auto", given)
                assert own == file.tensor(name, step, "auto" if tier == "base" else tier, given)
                assert own == run.bits(name, step).tobytes()
        for step in (0, 5, 3.999, 21, -4):
            with pytest.raises(relex_codec.InvalidArgument):
                run.bits("moving", step, "exact")
            with pytest.raises(ref.InvalidArgument):
                file.tensor("moving", step, "exact", given)
    path = VECTORS / "valid" / "minimal.relex"
    with relex_codec.open(path) as run, pytest.raises(relex_codec.InvalidArgument):
        run.tier(4, "exact")
    with pytest.raises(ref.InvalidArgument):
        ref.RelexFile(path.read_bytes()).tensor("w", 4, "exact")


def test_the_first_step_may_be_0() -> None:
    """Step 0 is then the origin in tier `auto`, and a stored step in tier `exact` and for a series."""
    path, base = VECTORS / "valid" / "exact-series.relex", VECTORS / "valid" / "exact-series.safetensors"
    with relex_codec.open(path, base=base) as run:
        assert run.tier(0) == "base" and run.tier(0, "exact") == "exact"
        assert run.bits("base", 0).view("<i8").tolist() == [-1, -2]
        assert run.bits("base", 0, "exact").view("<i8").tolist() == [0, 7]
        assert run.bits("base", 0, "line").view("<i8").tolist() == [0, 7]
        assert run.bits("base", -3).view("<i8").tolist() == [0, 7]
        assert run.bits("base", 8.75).view("<i8").tolist() == [1, 7]


# ---- Invalid files ----


def raised(action: Any, kind: type[Exception]) -> str | None:
    """The name of the error class that an action raises, None if it goes through; other exceptions pass on."""
    try:
        action()
    except kind as error:
        message = str(error)
        assert message and "\n" not in message
        return type(error).__name__
    return None


@pytest.mark.parametrize("entry", INVALID, ids=named)
def test_invalid_by_the_reference_decoder(entry: dict[str, Any]) -> None:
    base = base_of(entry)

    def action() -> None:
        file = ref.RelexFile((VECTORS / entry["path"]).read_bytes())
        assert entry["operation"] != "open", "opened"
        if entry["operation"] == "verify":
            file.check_all()
        else:
            given = None if base is None else ref.read_safetensors(base)
            file.tensor(entry["tensor"], entry["step"], entry["tier"], given)

    assert raised(action, ref.RelexError) == entry["error"]


@pytest.mark.parametrize("entry", INVALID, ids=named)
def test_invalid_by_the_package(entry: dict[str, Any]) -> None:
    def action() -> None:
        with relex_codec.open(VECTORS / entry["path"], base=base_of(entry)) as run:
            assert entry["operation"] != "open", "opened"
            if entry["operation"] == "verify":
                run.verify()
            else:
                run.bits(entry["tensor"], entry["step"], entry["tier"])

    assert raised(action, RelexError) == entry["error"]


@pytest.mark.parametrize("entry", [entry for entry in INVALID if re.search("large|huge", entry["path"])], ids=named)
def test_declared_sizes_are_not_believed(entry: dict[str, Any]) -> None:
    def action(path: Path) -> None:
        with relex_codec.open(path, base=base_of(entry)) as run:
            if entry["operation"] == "read":
                run.bits(entry["tensor"], entry["step"], entry["tier"])

    if entry["operation"] == "read":  # what is imported and compiled does not count
        action(VECTORS / entry["base"].replace(".safetensors", ".relex"))
    tracemalloc.start()
    try:
        with pytest.raises(relex_codec.Corrupt):
            action(VECTORS / entry["path"])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# ---- The appendix of FORMAT.md ----


FORMS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}


def appendix() -> str:
    return (SPEC / "FORMAT.md").read_text(encoding="utf-8").split("## Appendix: a file byte by byte", 1)[1]


def test_the_table_of_the_appendix_is_the_file() -> None:
    """Every byte of the smallest vector is in the table, at its offset, with its value, under the CRC that is named."""
    data = (VECTORS / "valid" / "minimal.relex").read_bytes()
    at = 0
    rows = re.findall(r"^\| (\d+)(?: - (\d+))? \| `([^`]+)` \| (.*?) \| (.+) \|$", appendix(), re.MULTILINE)
    for first, last, content, value, meaning in rows:
        end = int(last or first) + 1
        assert int(first) == at, f"the row at {first} does not follow {at}"
        expected = bytes.fromhex(content) if re.fullmatch("[0-9A-F]{2}( [0-9A-F]{2})*", content) else content.encode()
        assert data[at:end] == expected, f"bytes {first} to {end - 1}"
        if value:
            kind, text = value.split(" ")
            number = struct.unpack_from("<" + FORMS[kind], data, at)[0]
            assert number == (float(text) if kind[0] == "f" else int(text, 0)) or (text == "NaN" and number != number)
        if crc := re.search(r"CRC of .*?bytes (\d+) (?:to|and) (\d+)", meaning):
            assert number == zlib.crc32(data[int(crc[1]) : int(crc[2]) + 1])
        if digest := re.search(r"SHA-256 of `(.*?)`", meaning):
            assert expected == hashlib.sha256(bytes.fromhex(digest[1])).digest()[:16]
        at = end
    assert at == len(data) < 2048 and f"has {at} bytes" in appendix()


def test_the_arithmetic_of_the_appendix() -> None:
    data = (VECTORS / "valid" / "minimal.relex").read_bytes()
    assert re.findall(r"Byte \d is (0x..) = (\d+) = ([^:,]+?)[:,]", appendix().replace("\n", " ")) == [
        (f"0x{byte:02X}", str(byte), text)
        for byte, text in zip(
            data[-2:],
            ("2 + 3 * 0 + 9 * 2 + 27 * 1 + 81 * 1", "1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 1"),
            strict=True,
        )
    ]
    assert data[-2] == 2 + 3 * 0 + 9 * 2 + 27 * 1 + 81 * 1 and data[-1] == 1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 1
    assert ref.unpack_codes(data[-2:], 2, 6).tolist() == [1, 0, -1, 1, 1, -1] and data[-1] // 3 % 3 == 2
    one, w0, g = np.float32(1), np.float32(3), np.float32(struct.unpack_from("<d", data, 1456)[0])
    scaled, offset = one * np.float32(0.25), one * np.float32(0.0625)
    p = np.float32(0) + (scaled - offset)
    values = {"w0": w0, "g": g, "q * step": scaled, "sign(q) * shift": offset, "p": p, "p * g": p * g, "x": w0 + p * g}
    table = re.findall(r"^\| (.+?) \| `0x([0-9A-F]{8})` \| (.+?) \|$", appendix(), re.MULTILINE)
    assert [row[0] for row in table] == list(values)
    for name, bits, meaning in table:
        assert f"{int(values[name].view(np.uint32)):08X}" == bits
        decimal = re.search(r"(?:= )?([0-9.]+)(?:, rounded|, in the base.*)?$", meaning)
        assert decimal and (float(decimal[1]) == float(values[name]) or name == "g")
    for bits, decimal in re.findall(r"(0x404[34]) = ([0-9.]*[0-9])", appendix()):
        assert float(ref.widen(struct.pack("<H", int(bits, 16)), "BF16")[0]) == float(decimal)
    file, base = ref.RelexFile(data), ref.read_safetensors(VECTORS / "valid" / "minimal.safetensors")
    decoded = file.tensor("w", 4, "auto", base)
    whole, element = decoded.hex(" ").upper(), decoded[6:8].hex(" ").upper()
    assert f"is `{whole}`" in appendix() and f"is 0x4044, bytes `{element}`" in appendix()
    assert (
        ref.widen(base("w")[2], "BF16").tolist() == [1, -2, 0.5, 3, 0, -1]
        and "holds 1, -2, 0.5, 3, 0, -1" in appendix()
    )
