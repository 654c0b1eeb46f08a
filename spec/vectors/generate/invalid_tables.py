"""Invalid vectors of sections 4 and 5: steps, manifest, records."""

from __future__ import annotations

import math
from collections.abc import Iterator

import reference_decoder as ref

from .chunks import skippable_frame, states, unsized_frame
from .invalid_changes import (
    Change,
    Invalid,
    around,
    base,
    beside,
    both,
    direction,
    file_name,
    file_row,
    in_frame,
    layout,
    manifest,
    manifest_text,
    origin_dtype,
    patch,
    row,
    shards,
    sources,
    tensor,
)  # fmt: skip
from .parts import Parts

PICKLES = ("bin", "pt", "pth", "pkl", "ckpt")
DEVICES = ("CON", "prn", "aux", "nul", "com0", "COM9", "lpt1")


def emptied(parts: Parts) -> None:
    """The only tensor, moving, without elements."""
    parts.manifest["tensors"][0][2] = [0, 3]
    parts.entries["relex.digests"].clear()
    parts.chunks.clear()


def grown(parts: Parts) -> None:
    """A moving tensor whose origin is stored, with 2^47 elements."""
    parts.manifest["tensors"] = [["w", "BF16", [1 << 47], None]]
    parts.manifest["layouts"][0]["tensors"] = [0]
    table = parts.entries
    table["relex.tensors"][:] = table["relex.tensors"][:32]
    table["relex.directions"][:] = table["relex.directions"][:64]
    table["relex.coefficients"][:] = table["relex.coefficients"][:24]
    table["relex.norms"][:] = table["relex.norms"][:16]
    for name in ref.EXACT:
        del table[name]
    parts.tier = None
    table["relex.digests"].clear()
    parts.patch("relex.tensors", 1, "B", 1)


def without_frames(parts: Parts) -> None:
    """The three entries of the frames are not there."""
    for name in ref.EXACT:
        del parts.entries[name]


def not_numbers() -> list[tuple[str, str, Change, str]]:
    """Records of directions with numbers that cannot be."""
    result: list[tuple[str, str, Change, str]] = []
    for field_name, offset, form in (("slope", 0, "d"), ("intercept", 8, "d"), ("scale", 16, "f"), ("shift", 20, "f")):
        for word, value in (("nan", math.nan), ("infinite", -math.inf if field_name == "shift" else math.inf)):
            reason = f"{field_name} is not finite"
            result.append((f"direction-{field_name}-{word}", reason, direction(0, offset, form, value), "embedded"))
    result += [
        ("direction-scale-negative", "the sign bit of the scale is set", direction(0, 16, "f", -0.5), "embedded"),
        ("direction-scale-minus-zero", "the sign bit of the scale is set", direction(0, 16, "f", -0.0), "embedded"),
        ("direction-scale-unused", "a scale with packing float32", direction(0, 16, "f", 1.0), "packing-float32"),
        ("direction-shift-unused", "a shift with packing none", direction(0, 20, "f", 1.0), "factors-only"),
        ("direction-shift-minus-zero", "-0 is not all bits 0", direction(0, 20, "f", -0.0), "packing-float32"),
    ]
    return result


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All of them."""
    opened: list[tuple[str, str, Change]] = [
        # section 4
        ("steps-order", "steps decrease", patch("relex.steps", 0, "qq", 20, 10)),
        ("steps-equal", "a step occurs twice", patch("relex.steps", 0, "qq", 20, 20)),
        ("steps-negative", "a negative step", patch("relex.steps", 0, "q", -1)),
        ("steps-wrap", "steps decrease by more than 2^63", patch("relex.steps", 0, "qqq", 200, 100 - (1 << 63), 40)),
        ("steps-large", "a step above 2^53", patch("relex.steps", 16, "q", (1 << 53) + 1)),
        ("observed-none", "K = 0", manifest(observed=0)),
        ("observed-many", "K > T", manifest(observed=4)),
        ("observed-boolean", "K is true", manifest(observed=True)),
        ("observed-float", "K is 3.0", manifest(observed=3.0)),
        ("manifest-array", "the manifest is an array", lambda p: setattr(p, "text", b"[{}]    ")),
        ("packed-after", "eight bytes after the frame of the manifest", in_frame(after=8)),
        (
            "packed-after-noise",
            "a byte after the frame of the manifest is not 0",
            in_frame(lambda r: r[:-1] + b"\1", 3),
        ),
        ("packed-after-many", "more bytes after the frame than there are", lambda p: setattr(p, "text", b"\0\7\0\0{}")),
        ("packed-reserved", "a reserved byte before the frame is 1", in_frame(lambda r: r[:3] + b"\1" + r[4:])),
        ("packed-head", "a packed manifest of three bytes", in_frame(lambda r: r[:3])),
        ("packed-no-frame", "a packed manifest without a frame", in_frame(lambda r: r[:4])),
        ("packed-cut", "the frame of the manifest ends early", in_frame(lambda r: r[:-1])),
        ("packed-more", "something follows the frame of the manifest", in_frame(lambda r: r + b"\0")),
        ("packed-large", "a frame that holds more than a manifest's may", in_frame(spaces=200_000)),
        ("packed-twice", "a packed manifest in a frame", in_frame(twice=True)),
        ("packed-unsized", "a frame that does not say how much it holds", in_frame(frame=unsized_frame)),
        ("packed-states", "a frame that says that it holds more", in_frame(frame=lambda raw: states(len(raw) + 1))),
        ("packed-skippable", "a skippable frame", in_frame(frame=skippable_frame)),
        ("manifest-newline", "a newline after the manifest's }", around(b"", b"\n")),
        ("manifest-bom", "a byte order mark", around(b"\xef\xbb\xbf", b"")),
        ("manifest-missing", "no quality", lambda p: p.manifest.pop("quality")),
        ("manifest-exact-missing", "no key `exact`", lambda p: p.manifest.pop("exact")),
        ("manifest-exact-number", "`exact` is 0", manifest(exact=0)),
        ("manifest-minus-zero", "a file of -0 bytes", manifest_text('["empty.txt",0,', '["empty.txt",-0,')),
        (
            "manifest-long-fraction",
            "a number that exceeds f64 when it is rounded",
            beside('"z":1797693134862315808e290'),
        ),
        ("manifest-plus", "a number with a plus", beside('"z":+1')),
        ("manifest-point", "a number without digits after the point", beside('"z":1.')),
        ("manifest-duplicate", "a name occurs twice", beside('"indexed":true')),
        ("manifest-duplicate-inside", "a name occurs twice in an ignored object", beside('"z":[{"a":1,"a":1}]')),
        ("manifest-nan", "NaN is not JSON", beside('"z":NaN')),
        ("manifest-1e999", "a number that is not finite", beside('"z":1e999')),
        ("manifest-long-integer", "an integer beyond f64", manifest_text('"growth":0.05', '"growth":' + "9" * 400)),
        ("manifest-leading-zero", "an integer 03", manifest_text('"observed":3', '"observed":03')),
        ("manifest-surrogate", "half a surrogate in a name", manifest_text('"new.weight"', '"\\ud800"')),
        ("manifest-trailing-comma", "a comma before }", beside(",")),
        ("manifest-deep", "too deep to be read, and not closed", beside('"z":' + "[" * 20000)),
        ("tensor-duplicate", "two tensors of one name and dtype", both(row(1, 0, "a.weight"), row(1, 1, "BF16"))),
        ("tensor-metadata", "a tensor called __metadata__", row(1, 0, "__metadata__")),
        ("tensor-dtype", "an unknown dtype", row(1, 1, "I128")),
        ("tensor-shard", "a shard that the base does not have", sources(0, 2)),
        ("tensor-columns", "a row of five columns", lambda p: p.manifest["tensors"][0].append(0)),
        ("tensor-shape-float", "a dimension 40.0", row(0, 2, [40.0])),
        ("tensor-shape-negative", "a negative dimension", row(0, 2, [-40])),
        ("tensor-dimensions", "65 dimensions", row(0, 2, [40] + [1] * 64)),
        ("tensor-huge", "2^48 elements", row(0, 2, [1 << 24, 1 << 24])),
        ("tensor-huge-empty", "a dimension 2^48 beside 0", row(1, 2, [0, 1 << 48])),
        ("tensor-large-base", "2^47 elements in the base, one digest", row(0, 2, [1 << 47])),
        ("tensor-large-stored", "2^47 elements that the chunks do not hold", row(4, 2, [1 << 47])),
        ("tensor-large-moving", "2^47 elements, moving, that the chunks do not hold", grown),
        (
            "file-large",
            "a file of 2^47 bytes that the chunks do not hold",
            file_row(1, 1, 1 << 47),
        ),
        ("shard-path", "a path as the name of a shard", shards("../a.safetensors", "b.safetensors")),
        ("shard-newline", "a newline after a name", shards("a.safetensors", "b.safetensors\n")),
        ("shard-hidden", "a name that begins with a dot", shards(".safetensors", "b.safetensors")),
        ("shard-long", "a name of 256 bytes", shards("a.safetensors", "b" * 244 + ".safetensors")),
        ("shard-device", "a device of Windows", shards("a.safetensors", "nul.x.safetensors")),
        ("shard-capitals", "an ending in capitals", shards("a.SAFETENSORS", "b.safetensors")),
        ("shard-pickle", "a shard that is no safetensors file", shards("a.bin", "b.safetensors")),
        ("shard-order", "shards are not sorted", shards("b.safetensors", "a.safetensors")),
        ("shard-case", "shards differ in case only", shards("A.safetensors", "a.safetensors")),
        ("shards-none", "tensors of the base, which has no shards", base(shards=[])),
        ("layout-shards-none", "a layout without shards", layout(0, shards=[])),
        ("file-path", "a path as the name of a file", file_name("../config.json")),
        ("file-backslash", "a backslash in a name", file_name("a\\b")),
        ("file-dots", "a name ..", file_name("..")),
        ("file-shard", "a file that is a shard", file_name("c.safetensors")),
        ("file-index", "a file that is the index", file_name("model.safetensors.index.json")),
        ("file-index-json", "an index, with a word of configurations", file_name("config.index.json")),
        ("file-index-text", "an index that is a text", file_name("index.txt")),
        ("file-index-capitals", "an index in capitals", file_name("CONFIG-INDEX.json")),
        ("file-adapter", "the configuration of an adapter", file_name("adapter_config.json")),
        ("file-json", "a JSON file of another kind", file_name("trainer_state.json")),
        ("file-json-word", "a JSON file with part of a word", file_name("myconfig.json")),
        ("file-json-model", "a JSON file with a word of .model only", file_name("spiece.json")),
        ("file-model", "a .model file of another kind", file_name("weights.model")),
        ("file-model-json", "a .model file with a word of .json only", file_name("config.model")),
        ("file-other", "an ending that is not listed", file_name("config.npy")),
        ("file-no-ending", "a name without an ending that is not listed", file_name("config")),
        ("file-licence-ending", "a licence with an ending that is not listed", file_name("LICENSE.bin")),
        ("file-dot", "a name that ends in a dot", file_name("readme.md.")),
        ("file-duplicate", "files differ in case only", file_name("readme.md")),
        *[(f"file-pickle-{end}", "a pickle", file_name(f"config.{end}")) for end in PICKLES],
        *[(f"file-device-{name.lower()}", "a device of Windows", file_name(f"{name}.txt")) for name in DEVICES],
        # section 5
        ("tensor-reserved", "reserved bytes of a tensor", tensor(2, 31, "B", 1)),
        ("tensor-kind", "kind 4", tensor(1, 0, "B", 4)),
        ("tensor-origin", "origin 2", tensor(4, 1, "B", 2)),
        ("tensor-no-directions", "moving without directions", tensor(0, 2, "H", 0)),
        ("tensor-directions-same", "same with a direction", tensor(1, 2, "H", 1)),
        ("tensor-directions-many", "more directions than there are", tensor(2, 2, "H", 2)),
        ("tensor-first", "a direction is used twice", tensor(2, 4, "I", 0)),
        ("tensor-first-same", "an index that is not used", tensor(1, 4, "I", 1)),
        ("tensor-digest", "a digest is used twice", tensor(1, 8, "I", 0)),
        ("tensor-digest-stored", "an index that is not used", tensor(4, 8, "I", 4)),
        ("tensor-moving-integers", "moving of I16", both(row(0, 1, "I16"), origin_dtype(0, "I16"))),
        ("tensor-origin-integers", "moving of BF16 from U16", origin_dtype(0, "U16")),
        ("tensor-origin-dtype", "the same of I64 from U64", origin_dtype(1, "U64")),
        ("tensor-stored-sources", "a stored origin that is in the base too", row(4, 3, ["F16", [1]])),
        ("tensor-base-sources", "an origin in the base, which the manifest does not have", row(0, 3, None)),
        ("framed-first", "an index of directions that a framed tensor does not have", tensor(3, 4, "I", 2)),
        ("framed-directions", "framed with a direction", tensor(3, 2, "H", 1)),
        ("framed-no-segment", "framed, but in no segment", tensor(3, 20, "I", 0)),
        ("framed-segment", "a segment after the last", tensor(3, 20, "I", 2)),
        ("segment-not-framed", "in a segment, in a file without tier exact", tensor(0, 20, "I", 1)),
        ("framed-no-frames", "framed, but no frames in the file", without_frames),
        ("tensor-records", "a record too many", lambda p: p.entries["relex.tensors"].extend(bytes(32))),
        ("digest-unused", "a digest that no tensor uses", lambda p: p.entries["relex.digests"].extend(bytes(16))),
        ("direction-reserved", "reserved byte of a direction", direction(1, 27, "B", 1)),
        ("direction-packing", "packing 7", direction(0, 26, "B", 7)),
        (
            "direction-nothing",
            "packing none without factors",
            both(direction(0, 26, "B", 0), direction(0, 16, "ff", 0, 0)),
        ),
        ("direction-factors-vector", "factors of a vector", direction(0, 24, "H", 1)),
    ]
    for name, reason, change in opened:
        yield name, Invalid(reason, change)
    for name, reason, change, source in not_numbers():
        yield name, Invalid(reason, change, source=source)
    others: list[tuple[str, str, str, Change]] = [
        (
            "steps-none",
            "T = 0",
            "nothing",
            both(
                manifest(observed=0, steps=[]),
                lambda p: p.entries["relex.steps"].clear(),
                lambda p: p.entries["relex.errors"].clear(),
            ),
        ),
        ("tensor-moving-empty", "moving with n = 0", "minimal", emptied),
        ("tensor-span-unused", "a span of an origin that the file does not hold", "minimal", tensor(0, 16, "I", 1)),
        (
            "direction-large-rank",
            "65535 factor pairs that the chunks do not hold",
            "factors-only",
            direction(0, 24, "H", 65535),
        ),
        (
            "tensor-large-framed",
            "2^47 elements, framed, that the chunks do not hold",
            "exact-framed",
            row(1, 2, [1 << 47]),
        ),
        ("segment-no-frames", "a segment in a file without frames", "minimal", tensor(0, 20, "I", 1)),
        ("framed-empty-segment", "framed and empty, but in a segment", "small-shapes", tensor(4, 20, "I", 1)),
        ("exact-no-frames", "tier exact in a file without frames", "minimal", manifest(exact=True)),
        ("frames-not-needed", "frames that no tensor and no tier needs", "exact-still", manifest(exact=False)),
        (
            "exact-not-offered",
            "segments of a `same` tensor in a file without tier exact",
            "exact-small",
            manifest(exact=False),
        ),
    ]
    for name, reason, source, change in others:
        yield name, Invalid(reason, change, source=source)
