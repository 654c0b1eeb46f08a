"""Invalid vectors of ties, of origins in parts, and of layouts, files and directories of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .invalid_changes import (
    Change,
    Invalid,
    base,
    both,
    file_name,
    file_row,
    layout,
    manifest,
    origin_dtype,
    patch,
    row,
    sources,
    step,
    tensor,
)  # fmt: skip
from .parts import Parts
from .recipe import AUTO

Rows = Iterator[tuple[str, str, str, Change]]
DIGEST = "0123456789abcdef0123456789abcdef"


def pop(*keys: str) -> Change:
    """A key of the manifest is missing."""

    def change(parts: Parts) -> None:
        found: Any = parts.manifest
        for key in keys[:-1]:
            found = found[int(key) if isinstance(found, list) else key]
        del found[keys[-1]]

    return change


def told(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """A change of the manifest that has no name of its own."""
    return lambda parts: edit(parts.manifest)


def ties() -> Rows:
    """Section 5: kind `tied`. In the vector `tied`, tensor 0 is another name of 2, and 3 of 1."""
    for name, reason, change in (
        ("target", "another name of a tensor that is not there", tensor(0, 4, "I", 9)),
        ("target-tied", "another name of another name", tensor(0, 4, "I", 6)),
        ("target-self", "another name of itself", tensor(0, 4, "I", 0)),
        ("dtype", "another dtype than what it is a name of", row(0, 1, "F16")),
        ("shape", "another shape than what it is a name of", row(0, 2, [6, 4])),
        ("sources", "sources of its own", row(0, 3, ["BF16", [[0, "embed.weight", [4, 6], 0, 24]]])),
        ("origin", "origin 1", tensor(0, 1, "B", 1)),
        ("directions", "a direction", tensor(0, 2, "H", 1)),
        ("digest", "an index of digests", tensor(0, 8, "I", 1)),
        ("chunk", "a span", tensor(0, 12, "I", 1)),
        ("offset", "a span", tensor(0, 16, "I", 1)),
        ("segment", "a segment", tensor(3, 20, "I", 1)),
        ("reserved", "reserved bytes", tensor(0, 24, "B", 1)),
    ):
        yield f"tied-{name}", f"another name with {reason}" if name[0] != "t" else reason, "tied", change


def origins() -> Rows:
    """Section 4: origins. In `sources-ranges`, tensor 0 has elements 18 to 24 of `experts`, [4, 2, 3]."""

    def one(*values: Any) -> Change:
        return sources(0, list(values))

    shape = [4, 2, 3]
    for name, reason, change in (
        ("none", "an origin without sources", sources(0)),
        ("list", "sources that are no list", row(0, 3, ["F16", 0])),
        ("origin-short", "an origin without sources", row(0, 3, ["F16"])),
        ("origin-long", "an origin of three values", row(0, 3, ["F16", [0], 0])),
        ("origin-object", "an origin that is an object", row(0, 3, {})),
        ("origin-dtype", "an origin dtype that there is not", origin_dtype(0, "F12")),
        ("origin-dtype-number", "an origin dtype that is a number", origin_dtype(0, 16)),
        ("boolean", "a source that is true", sources(0, True)),
        ("float", "a shard 0.0", sources(0, 0.0)),
        ("short", "a source of four values", one(0, "experts", shape, 18)),
        ("long", "a source of six values", one(0, "experts", shape, 18, 6, 0)),
        ("shard", "a shard that the base does not have", one(1, "experts", shape, 18, 6)),
        ("shard-null", "a shard that is null", one(None, "experts", shape, 18, 6)),
        ("name", "a name that is a number", one(0, 7, shape, 18, 6)),
        ("name-metadata", "a tensor called __metadata__", one(0, "__metadata__", shape, 18, 6)),
        ("shape", "a negative dimension", one(0, "experts", [4, -2, -3], 18, 6)),
        ("shape-huge", "2^48 elements", one(0, "large", [1 << 24, 1 << 24], 18, 6)),
        ("first", "a negative element", one(0, "experts", shape, -1, 6)),
        ("first-float", "element 18.0", one(0, "experts", shape, 18.0, 6)),
        ("beyond", "elements beyond the last one", one(0, "experts", shape, 19, 6)),
        ("count", "fewer elements than the tensor", one(0, "experts", shape, 18, 5)),
        ("sum", "more elements than the tensor", sources(0, [0, "experts", shape, 18, 6], [0, "experts", shape, 0, 1])),
        ("empty", "a source of no element", sources(0, [0, "experts", shape, 18, 6], [0, "experts", shape, 0, 0])),
        ("whole-twice", "a tensor twice for one of its size", sources(0, [0, "experts", shape, 18, 6], 0)),
        ("differ-shape", "two sources that differ in a shape", one(0, "experts", [3, 2, 4], 18, 6)),
        ("differ-dtype", "two sources that differ in a dtype", origin_dtype(0, "BF16")),
        (
            "differ-shard",
            "two sources that differ in a shard",
            both(base(shards=["a.safetensors", "b.safetensors"]), one(1, "experts", shape, 18, 6)),
        ),
    ):
        yield f"source-{name}", reason, "sources-ranges", change


def bases() -> Rows:
    """Section 4: shards of the base."""
    for name, reason, change in (
        ("missing", "no shards of the base", pop("base", "shards")),
        ("object", "shards of the base that are no list", base(shards={})),
        ("number", "a shard of the base that is a number", base(shards=[5])),
        ("order", "shards of the base that are not sorted", base(shards=["model.safetensors", "a.safetensors"])),
        (
            "case",
            "shards of the base that differ in case only",
            base(shards=["MODEL.safetensors", "model.safetensors"]),
        ),
        ("path", "a path as a shard of the base", base(shards=["../model.safetensors"])),
    ):
        yield f"base-shards-{name}", reason, "minimal", change


def files() -> Rows:
    """Section 4: files."""
    for name, reason, change in (
        ("columns", "a row of four columns", told(lambda m: m["files"][0].pop())),
        ("digest-short", "a digest of 31 digits", file_row(0, 2, DIGEST[1:])),
        ("digest-capitals", "a digest in capitals", file_row(0, 2, DIGEST.upper())),
        ("digest-number", "a digest that is a number", file_row(0, 2, 7)),
        ("digest-none", "no digest of a configuration", file_row(0, 2, None)),
        ("digest-text", "no digest of a text that is no document", file_row(2, 2, None)),
        ("chunk-null", "half a span", file_row(0, 3, None)),
        ("offset-null", "half a span", file_row(0, 4, None)),
        ("span-negative", "a negative chunk", file_row(0, 3, -1)),
        ("embedded", "a file that is only in a base that is embedded", file_row(2, 3, None, None)),
        ("folder", "a folder that is not listed", file_name("other/config.json")),
        ("folder-deep", "a folder in a folder", file_name("custom_generate/custom_generate/x.py")),
        ("folder-capitals", "a folder in capitals", file_name("Custom_Generate/x.py")),
        ("folder-name", "a name that is not allowed, in a folder", file_name("custom_generate/x.bin")),
        ("folder-empty", "a folder without a file", file_name("custom_generate/")),
        (
            "folder-adapter",
            "the configuration of an adapter, in a folder",
            file_name("custom_generate/adapter_config.json"),
        ),
        ("model-version", "a version without a number", file_name("tokenizer.model.v")),
        ("model-version-long", "a version of four digits", file_name("tokenizer.model.v1000")),
        ("model-version-word", "a version of a .model file of another kind", file_name("weights.model.v3")),
        ("adapter-capitals", "the configuration of an adapter in capitals", file_name("Adapter_config.json")),
    ):
        yield f"file-{name}", reason, "embedded", change
    yield (
        "file-nowhere",
        "a file of a base without shards",
        "no-base",
        manifest(files=[["config.json", 2, DIGEST, None, None]]),
    )


def layouts() -> Rows:
    """Section 4: layouts. In the vector `layouts` there are three, of which steps have 0, 0, 2, 2, and K is 2."""
    for name, reason, change in (
        ("missing", "no layouts", pop("layouts")),
        ("none", "an empty list of layouts", manifest(layouts=[])),
        ("list", "a layout that is a list", told(lambda m: m["layouts"].__setitem__(1, []))),
        ("tensors-missing", "a layout without tensors", told(lambda m: m["layouts"][1].pop("tensors"))),
        ("files-missing", "a layout without files", told(lambda m: m["layouts"][1].pop("files"))),
        ("indexed", "indexed is 1", layout(0, indexed=1)),
        ("tensors-few", "not as many tensors as there are", layout(1, tensors=[None] * 4)),
        ("tensors-many", "more tensors than there are", layout(1, tensors=[None] * 6)),
        ("shard", "a tensor in a shard that the layout does not have", layout(1, tensors=[None, 2, None, None, None])),
        ("shard-negative", "a tensor in shard -1", layout(1, tensors=[None, -1, None, None, None])),
        ("shard-boolean", "a tensor in shard false", layout(1, tensors=[None, False, None, None, None])),
        ("names", "two tensors of one name", layout(0, tensors=[0, 0, 0, 0, None])),
        ("shards-order", "shards that are not sorted", layout(1, shards=["x.safetensors", "other.safetensors"])),
        ("shards-case", "shards that differ in case only", layout(1, shards=["X.safetensors", "x.safetensors"])),
        ("shards-bin", "a shard that is a pickle", layout(1, shards=["other.bin", "x.safetensors"])),
        ("number-missing", "no key `layout`", pop("layout")),
        ("number-boolean", "`layout` is false", manifest(layout=False)),
        ("number-large", "a layout that is not there", manifest(layout=3)),
        ("number", "`layout` is not that of the last observed step", manifest(layout=2)),
        ("steps-missing", "no key `steps`", pop("steps")),
        ("steps-few", "a step too few", told(lambda m: m["steps"].pop())),
        ("steps-many", "a step too many", told(lambda m: m["steps"].append([None, 0]))),
        ("step-columns", "a step of one value", step(3, None)),
        ("step-layout", "a step of a layout that is not there", step(3, None, 3)),
        ("step-layout-negative", "a step of layout -1", step(3, None, -1)),
        ("step-layout-null", "a step without a layout", step(3, None, None)),
    ):
        yield f"layout-{name}", reason, "layouts", change
    for name, reason, change in (
        ("file", "a file that is not there", layout(0, files=[0, 7])),
        ("file-boolean", "a file that is true", layout(0, files=[0, True])),
        ("file-names", "two files of one name", layout(1, files=[0, 5])),
        ("file-twice", "a file twice", layout(1, files=[6, 6])),
        ("file-case", "two files differ in case only", both(file_row(5, 0, "CONFIG.json"), layout(1, files=[0, 5]))),
    ):
        yield f"layout-{name}", reason, "files-by-step", change
    two = told(lambda m: m["layouts"].append(m["layouts"][0]))
    yield "layout-two", "two layouts without tier exact", "minimal", two
    shards: list[tuple[str, list[str]]] = [
        ("other", ["adapter.safetensors"]),
        ("two", ["adapter_model.safetensors", "model.safetensors"]),
        ("capitals", ["Adapter_model.safetensors"]),
    ]
    for name, names in shards:
        yield (
            f"adapter-{name}",
            "the configuration of an adapter beside other weights",
            "adapter",
            layout(0, shards=names),
        )


def directories() -> Rows:
    """Section 4: directories of steps, and what was left out."""
    for name, reason, value in (
        ("number", "a number", 10),
        ("empty", "no name", ""),
        ("absolute", "an absolute path", "/a"),
        ("above", "a way up", "../a"),
        ("dot", "a way nowhere", "a/./b"),
        ("twice", "two slashes", "a//b"),
        ("end", "a slash at the end", "a/"),
        ("hidden", "a hidden directory", "a/.b"),
        ("hyphen", "a name that begins like an option", "-a"),
        ("point", "a name that ends in a dot", "a./b"),
        ("space", "a space", "a b"),
        ("backslash", "a backslash", "a\\b"),
        ("newline", "a newline", "a\n"),
        ("colon", "a drive", "c:a"),
        ("device", "a device of Windows", "a/CON"),
        ("device-ending", "a device of Windows", "nul.x/a"),
        ("deep", "nine segments", "a/b/c/d/e/f/g/h/i"),
        ("long", "1001 characters", "/".join(["x" * 249, "y" * 250, "z" * 250, "v" * 249])),
        ("long-segment", "a segment of 256 characters", "x" * 256),
        ("same", "the directory of another step", "checkpoint-10"),
        ("case", "the directory of another step in capitals", "CHECKPOINT-10"),
        ("step", "the directory of a step without a name", "global_step_20"),
        ("inside", "a directory inside that of another step", "checkpoint-10/a"),
        ("inside-case", "a directory inside that of another step", "Checkpoint-10/a"),
        ("around", "a directory with that of another step in it", "global_step_30/actor"),
    ):
        yield f"directory-{name}", f"a directory: {reason}", "directories", step(3, value, 0)
    rows: list[tuple[str, str, Any]] = [
        ("missing", "no key `left_out`", None),
        ("object", "`left_out` is no list", {}),
        ("many", "1001 rows", [["x", 1, 1]] * 1001),
        ("columns", "a row of two columns", [["x", 1]]),
        ("name", "a row without a name", [[None, 1, 1]]),
        ("negative", "a negative number of files", [["x", -1, 1]]),
        ("float", "a number of bytes that is no integer", [["x", 1, 1.0]]),
        ("large", "more than 2^53 bytes", [["x", 1, (1 << 53) + 1]]),
    ]
    for name, reason, value in rows:
        change = pop("left_out") if value is None else manifest(left_out=value)
        yield f"left-out-{name}", f"left_out: {reason}", "figures", change


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All of them."""
    for part in (ties(), origins(), bases(), files(), layouts(), directories()):
        for name, reason, source, change in part:
            yield name, Invalid(reason, change, source=source)
    yield (
        "file-stored-digest",
        Invalid(
            "a file that is not the one of its digest",
            file_row(0, 2, DIGEST),
            source="files-by-step",
            operation="verify",
        ),
    )
    yield from read()


def read() -> Iterator[tuple[str, Invalid]]:
    """What is wrong with the base, and what a caller may not ask for."""
    mismatch: dict[str, Any] = {"error": "BaseMismatch", "operation": "read"}
    for name, reason, change in (
        ("missing", "the base lacks a source", sources(0, [0, "expert", [4, 2, 3], 18, 6])),
        ("digest", "the elements of a source are others", patch("relex.digests", 3, "B", 0)),
        ("first", "another part of a source", sources(0, [0, "experts", [4, 2, 3], 17, 6])),
    ):
        yield f"base-source-{name}", Invalid(reason, change, source="sources-ranges", tensor="experts.3", **mismatch)
    whole: list[Any] = [[i % 2, f"experts.{i}.gate", [2, 4], 0, 8] for i in range(3)]
    for name, reason, changes in (
        ("order", "sources in another order", [sources(0, whole[1], whole[0], whole[2])]),
        ("shape", "a source has another shape", [
            sources(0, *[[*one[:2], [4, 2], *one[3:]] for one in whole]),
            sources(1, [0, "experts.2.gate", [4, 2], 5, 3], [0, "experts.0.gate", [4, 2], 0, 2]),
        ]),
        ("dtype", "a source has another dtype", [origin_dtype(0, "BF16"), origin_dtype(1, "BF16"), row(1, 1, "BF16")]),
    ):  # fmt: skip
        yield (
            f"base-sources-{name}",
            Invalid(reason, both(*changes), source="sources-concatenated", tensor="experts.gate", **mismatch),
        )
    own: dict[str, Any] = {"source": "files-of-the-base", "operation": "file", "step": 10}
    changed = Invalid("a file of the base that is another", file_row(1, 2, DIGEST), error="BaseMismatch", **own)
    changed.tensor = "config.json"
    yield "base-file-digest", changed
    gone = Invalid("a file that the base lacks", file_row(1, 0, "params.json"), error="BaseMismatch", **own)
    gone.tensor = "params.json"
    yield "base-file-missing", gone
    nothing = Invalid("a file of a base that is not given", error="InvalidArgument", **own, base="none")
    nothing.tensor = "config.json"
    yield "argument-file-base", nothing
    asked: list[tuple[str, str, float, str, str, str]] = [
        ("lacking", "a tensor that a step lacks", 4, "exact", "layouts", "head"),
        ("lacking-line", "a tensor that only other steps have", 4, "line", "layouts", "new"),
        ("lacking-auto", "a tensor that only other steps have", 0, AUTO, "layouts", "new"),
        ("lacking-tied", "another name that a step lacks", 10, "exact", "exact-tied", "later"),
        ("framed-line", "a tensor of floats without a line between steps", 15, "line", "framed-floats", "BF16"),
        ("framed-track", "a tensor of floats without a line between steps", 15, "track", "framed-floats", "F64"),
        ("framed-auto", "a tensor of floats without a line after the steps", 50, AUTO, "framed-floats", "F8_E8M0"),
        ("framed-before", "a tensor of floats without a line before the steps", 0, "line", "framed-floats", "C64"),
        ("framed-exact", "a tensor of floats without a line between steps", 6, AUTO, "exact-framed-floats", "float"),
    ]
    for name, reason, t, tier, source, name_of in asked:
        yield (
            f"argument-{name}",
            Invalid(
                reason, error="InvalidArgument", operation="read", tensor=name_of, step=t, tier=tier, source=source
            ),
        )
