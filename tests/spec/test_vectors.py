"""The files of spec/vectors: the package and the reference decoder agree with their manifest, bit for bit."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import generate.make
import numpy as np
import pytest
import zstandard
from click.testing import CliRunner
from generate.exact_streams import by_family

import relex_codec
from relex_codec.decoding.base_locator import BaseLocator
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import RelexError
from relex_codec.kernels.cpu import launch
from relex_codec.kernels.interface import Coefficients, Decode, DecodeJob, Targets
from relex_codec.run.run_reader import RunReader
from relex_codec.run.step_files import StepFiles
from support.specification import (
    INVALID,
    MANIFEST,
    VALID,
    VECTORS,
    base_files,
    base_of,
    data_of,
    given_base,
    named,
    package_base,
    ref,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The files of the corpus, without the scripts that make it."""
    return [path for path in folder.rglob("*") if path.is_file() and "generate" not in path.relative_to(folder).parts]


# ---- The corpus ----


def test_the_manifest_lists_what_is_there() -> None:
    listed = {"manifest.json", "README.md"}
    for entry in VALID + INVALID:
        listed.add(entry["path"])
        assert sha256((VECTORS / entry["path"]).read_bytes()) == entry["sha256"]
        if isinstance(entry["base"], dict):
            listed.add(entry["base"]["path"])
            for name in {name for read in entry["reads"] for name in read.get("checkpoint", {}).get("files", {})}:
                if (path := (VECTORS / entry["base"]["path"]).parent / name).exists() and path.parent.name != "valid":
                    listed.add(path.relative_to(VECTORS).as_posix())
            assert sha256((VECTORS / entry["base"]["path"]).read_bytes()) == entry["base"]["sha256"]
    assert {path.relative_to(VECTORS).as_posix() for path in files_of(VECTORS)} == listed
    assert len(VALID) >= 48 and len(INVALID) >= 380
    assert len(VALID) + len(INVALID) == len({entry["path"] for entry in VALID + INVALID})
    assert sum((VECTORS / path).stat().st_size for path in listed) < 3_200_000


def test_every_packing_dtype_and_codec_occurs() -> None:
    packings, dtypes, codecs, kinds, ranks, counts, offers = (set[Any]() for _ in range(7))
    for entry in VALID:
        file = ref.RelexFile(data_of(entry))
        packings |= {(d.packing, d.pairs > 0) for d in file.directions}
        dtypes |= {named.dtype for named in file.manifest} | {named.origin_dtype for named in file.manifest}
        codecs |= {chunk.codec for chunk in file.chunks}
        kinds |= {(tensor.kind, tensor.origin, file.embedded) for tensor in file.tensors}
        ranks |= {len(named.shape) for named in file.manifest}
        counts |= {tensor.directions for tensor in file.tensors}
        offers.add((file.has_frames, file.has_exact))
    assert packings >= {(p, r) for p in range(7) for r in (False, True)} - {(0, False)}
    assert dtypes == set(ref.WIDTH) and codecs == {0, 1, 2}
    assert kinds >= {(kind, origin, False) for kind in range(3) for origin in range(2)} | {(3, 0, False)}
    assert kinds >= {(kind, 0, True) for kind in range(4)}
    assert ranks >= {0, 1, 2, 3, 4} and counts >= {0, 1, 2, 3}
    assert offers == {(False, False), (True, False), (True, True)}


def test_everything_of_the_exact_tier_occurs() -> None:
    """Numbers of steps and segments, left ends, codings, lanes, contexts of every family, and sizes of all kinds."""
    steps, lefts, counts, codings, lanes, families, groups, since, dense = (set() for _ in range(9))
    for entry in VALID:
        file = ref.RelexFile(data_of(entry))
        if not file.has_frames:
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
                _, sets = ref.read_tables(file, k, group)
                dense |= {own.dense for own in sets}
                tables = (enumerate(own.contexts) for own in sets)
                families |= {by_family(context) for own in tables for context, table in own if table != ref.NO_TABLE}
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
    generate.make.make(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in files_of(tmp_path)}
    there = {path.relative_to(VECTORS): path.read_bytes() for path in files_of(VECTORS)}
    del there[Path("README.md")]
    assert made.keys() == there.keys()
    assert [path for path in made if made[path] != there[path]] == []


# ---- Valid files ----


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


def by_reference(entry: dict[str, Any]) -> None:
    """The reference decoder checks the file and gives what the manifest says."""
    file, given = ref.RelexFile(data_of(entry)), given_base(entry)
    file.check_all()
    for read in entry["reads"]:
        where = read["step"], read["tier"]
        assert list(read["tensors"]) == list(ref.names_of(file, file.layout_at(*file.at(*where))))
        for name, digest in read["tensors"].items():
            assert sha256(file.tensor(name, *where, given)) == digest, (name, read["step"])
        if "checkpoint" in read:
            files = {
                name: content if content is None else sha256(content)
                for name in file.checkpoint(*where).files
                for content in [file.file(name, *where, base_files(entry))]
            }
            assert file.checkpoint(*where)._replace(files=files)._asdict() == read["checkpoint"]


def by_the_package(entry: dict[str, Any]) -> None:
    """The package checks the file and gives what the manifest says, with each kernel; a range is one of the whole.

    The default kernel for little work is the reference in numpy: the files are small.
    """
    with relex_codec.open(VECTORS / entry["path"], base=package_base(entry)) as run:
        reader = run._reader
        run.verify()
        kernels = (launch.prepare, by_torch)
        base = BaseLocator(reader.container, package_base(entry), None)
        files = StepFiles(reader)
        decoders = [TensorDecoder(reader.container, base, prepare=prepare) for prepare in kernels]
        for i, read in enumerate(entry["reads"]):
            step = StepTier(read["step"], run.tier(read["step"], tier=read["tier"]))
            assert reader.keys(reader.layout(read["step"], read["tier"])) == list(read["tensors"])
            for name, digest in read["tensors"].items():
                bits = reader.bits(name, read["step"], read["tier"])
                tensor = reader.entry(name, read["step"], read["tier"])
                n = tensor.size
                assert bits.size == n
                assert sha256(bits.tobytes()) == digest, (name, read["step"], read["tier"])
                for decoder in decoders:
                    assert sha256(decoder.read(tensor, step).tobytes()) == digest, (name, read, decoder)
                middle = min(n, ref.PIECE - 1), min(n, ref.PIECE + 1)
                for lo, hi in {(0, n), (n // 3, n // 2), (max(0, n - 1), n), middle} if i == 0 else ():
                    assert np.array_equal(reader.bits(name, read["step"], read["tier"], lo, hi), bits[lo:hi])
            if "checkpoint" in read:
                same_checkpoint(reader, files, read)


def same_checkpoint(reader: RunReader, files: StepFiles, read: dict[str, Any]) -> None:
    """The files of a step are those that the manifest says."""
    index, wanted, where = reader.container.index, read["checkpoint"], (read["step"], read["tier"])
    layout = reader.layout(*where)
    there = {name for name, digest in wanted["files"].items() if digest is not None}
    shards, indexed = wanted["shards"], {"model.safetensors.index.json"} if wanted["indexed"] else set()
    assert set(files.at(*where).sizes()) == {*shards, *there, *indexed}
    assert layout.indexed == wanted["indexed"] and list(layout.files) == list(wanted["files"])
    for name, size in files.at(*where).sizes().items():
        data = b"".join(files.stream(name, *where))
        assert len(data) == size
        if name in there:
            assert sha256(data) == wanted["files"][name]
        elif name in shards:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            assert list(header) == ["__metadata__", *shards[name]]
        else:
            weight_map = json.loads(data)["weight_map"]
            assert weight_map == {tensor: shard for shard in shards for tensor in shards[shard]}
    if wanted["directory"] is not None:
        number = index.steps.tolist().index(read["step"])
        found = index.manifest.steps[number].directory
        assert (f"global_step_{read['step']:g}" if found is None else found) == wanted["directory"]


def by_the_command(entry: dict[str, Any]) -> None:
    """The command verifies the file."""
    base = base_of(entry)
    command = importlib.import_module("relex_codec.cli.verify").command
    arguments = [str(VECTORS / entry["path"]), *([] if base is None else ["--base", str(package_base(entry))])]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("entry", VALID, ids=named)
def test_valid(entry: dict[str, Any]) -> None:
    by_reference(entry)
    by_the_package(entry)
    by_the_command(entry)


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
                assert own == run._reader.bits(name, step).tobytes()
        for step in (0, 5, 3.999, 21, -4):
            with pytest.raises(relex_codec.InvalidArgument):
                run._reader.bits("moving", step, "exact")
            with pytest.raises(ref.InvalidArgument):
                file.tensor("moving", step, "exact", given)
    path = VECTORS / "valid" / "minimal.relex"
    with relex_codec.open(path) as run, pytest.raises(relex_codec.InvalidArgument):
        run.tier(4, tier="exact")
    with pytest.raises(ref.InvalidArgument):
        ref.RelexFile(path.read_bytes()).tensor("w", 4, "exact")


def test_the_first_step_may_be_0() -> None:
    """Step 0 is then what it is in tier `exact`, and not the origin."""
    path, base = VECTORS / "valid" / "exact-framed.relex", VECTORS / "valid" / "exact-framed.safetensors"
    with relex_codec.open(path, base=base) as run:
        assert run.tier(0) == "exact"
        assert run._reader.bits("base", 0).view("<i8").tolist() == [0, 7]
        assert run._reader.bits("base", 0, "exact").view("<i8").tolist() == [0, 7]
        assert run._reader.bits("base", 0, "line").view("<i8").tolist() == [0, 7]
        assert run._reader.bits("base", -3).view("<i8").tolist() == [0, 7]
        assert run._reader.bits("base", 8.75).view("<i8").tolist() == [1, 7]


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
def test_invalid(entry: dict[str, Any]) -> None:
    def by_reference() -> None:
        file = ref.RelexFile(data_of(entry))
        assert entry["operation"] != "open", "opened"
        if entry["operation"] == "verify":
            file.check_all()
        elif entry["operation"] == "file":
            file.file(entry["file"], entry["step"], entry["tier"], base_files(entry))
        else:
            file.tensor(entry["tensor"], entry["step"], entry["tier"], given_base(entry))

    def by_the_package() -> None:
        with relex_codec.open(VECTORS / entry["path"], base=package_base(entry)) as run:
            assert entry["operation"] != "open", "opened"
            if entry["operation"] == "verify":
                run.verify()
            elif entry["operation"] == "file":
                b"".join(StepFiles(run._reader).stream(entry["file"], entry["step"], entry["tier"]))
            else:
                run._reader.bits(entry["tensor"], entry["step"], entry["tier"])

    assert raised(by_reference, ref.RelexError) == entry["error"], "by the reference decoder"
    assert raised(by_the_package, RelexError) == entry["error"], "by the package"


@pytest.mark.parametrize("entry", [entry for entry in INVALID if re.search("large|huge", entry["path"])], ids=named)
def test_declared_sizes_are_not_believed(entry: dict[str, Any]) -> None:
    def action(path: Path) -> None:
        with relex_codec.open(path, base=base_of(entry)) as run:
            if entry["operation"] == "read":
                run._reader.bits(entry["tensor"], entry["step"], entry["tier"])

    if entry["operation"] == "read":  # what is imported and compiled does not count
        action(VECTORS / entry["base"].replace(".safetensors", ".relex"))
    tracemalloc.start()
    try:
        with pytest.raises(relex_codec.Corrupt):
            action(VECTORS / entry["path"])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
