"""Replaying stored steps: all of them, bit for bit, each frame decoded once; iter_steps and check_exact."""

from __future__ import annotations

import json
import threading
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import relex_codec
from relex_codec import BaseMismatch, Corrupt, InvalidArgument
from relex_codec.cli.main import group
from relex_codec.exact import replay
from relex_codec.exact.bisection import frames_of
from relex_codec.exact.part_decoder import PartDecoder
from relex_codec.exact.replay import batches, keys_of, replay_all, replay_parts
from relex_codec.exact.tier_reader import ExactTier, Key
from relex_codec.format import constants as f
from relex_codec.run.info import KINDS, text
from support.checkpoints import write_checkpoint, write_run
from support.runs import Made
from support.tensors import Tensor, bf16, bits_of, f16, f32, random_bits

STEPS = [*range(1, 12), 15, 16, 20, 21, 22, 30]
Counted = Counter[tuple[int, int, int]]


def tensors(step: int) -> dict[str, Tensor]:
    """Tensors of several dtypes, one of two pieces; `late` and `later` begin to move in later segments."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape, make, since in (
        ("large", (9, 1 << 15), bf16, 0), ("half", (33, 20), f16, 0), ("late", (50, 4), bf16, 10),
        ("single", (300,), f32, 0), ("later", (31,), f16, 20),
    ):  # fmt: skip
        start, drift = rng.standard_normal(shape) * 0.05, rng.standard_normal(shape) * 3e-3
        noise = np.random.default_rng((len(found), max(since, step))).standard_normal(shape) * 1e-3
        dtype, bits = make(start + (drift * (step - since) + noise if step > since else 0))
        found[name] = dtype, bits.reshape(shape)
    found["still"] = bf16(rng.standard_normal((6, 7)))
    found["nothing"] = bf16(np.zeros((0, 4)))
    found["count"] = ("I64", np.array([step, 3, -step % 2**64], np.uint64))
    found["codes"] = random_bits("F8_E4M3", (40,), step // 4)
    found["pairs"] = random_bits("C64", (5,), step // 7)
    found["doubles"] = random_bits("F64", (9,), step // 3)
    found["switch"] = random_bits("BOOL", (20,), step // 5)
    if step:
        found["added"] = bf16(rng.standard_normal((4, 8)) + step * 1e-2)
    return found


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of 17 steps, and ``x.relex``: seven of them at first, the others in six further segments."""
    root = tmp_path_factory.mktemp("replay")
    write_checkpoint(root / "base", tensors(0), shards=2)
    write_run(root / "run", STEPS, tensors, shards=2)
    file = root / "x.relex"
    relex_codec.encode(root / "run", file, base=root / "base", quality="micro", steps="1:7", exact=True)
    for new in ([8, 9], [10], [11], [15, 16], [20, 21, 22], [30]):
        relex_codec.append(file, [root / "run" / f"global_step_{step}" for step in new])
    return Made(root, STEPS, tensors(0), tensors)


@pytest.fixture
def opened(long: Made) -> Iterator[relex_codec.Run]:
    with relex_codec.open(long.root / "x.relex") as run:
        assert len(run._reader.decoder.exact.segments) == 7
        assert {s.left for s in run._reader.decoder.exact.segments} > {0}  # not all begin from the base
        yield run


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts how often each frame of each part is decoded: (part, segment, step in the segment)."""
    found: Counted = Counter()
    decoder = ExactTier.decoder

    def counting(self: ExactTier, segment: int, part: Any, left: Any, blobs: Any) -> PartDecoder:
        made = decoder(self, segment, part, left, blobs)
        frame = made.frame

        def counted(step: int) -> Any:
            found[hash(part), segment, step] += 1
            return frame(step)

        made.frame = counted
        return made

    monkeypatch.setattr(ExactTier, "decoder", counting)
    return found


def all_of(tier: ExactTier) -> list[Any]:
    return [part for parts in batches(tier) for part in parts]


def needed(tier: ExactTier, part: Any, steps: list[int]) -> set[tuple[int, int, int]]:
    """The frames that restoring a part at some step numbers takes."""
    found = set()
    for step in steps:
        at = step
        while at and tier.holds(tier.segment_of(at), part.tensor):
            number = tier.segment_of(at)
            segment = tier.segments[number]
            found |= {(hash(part), number, i) for i in frames_of(at - segment.first, segment.count)}
            at = segment.left
    return found


# ---- Parts ----


@pytest.mark.parametrize(
    "steps",
    [range(1, 18), [1], [17], [7, 8], [2, 5, 6], range(1, 18, 3), range(4, 14), [16, 3, 16, 9], [10, 12]],
    ids=str,
)
def test_each_frame_that_is_needed_is_decoded_once(opened: relex_codec.Run, decoded: Counted, steps: Any) -> None:
    tier = opened._reader.decoder.exact
    parts = all_of(tier)
    seen = []
    for number, found in replay_parts(tier, parts, steps, opened._reader.decoder.part_origin):
        seen.append(number)
        at = tensors(STEPS[number - 1])
        for part, bits in zip(parts, found, strict=True):
            name = opened.keys()[part.tensor]
            start = part.piece * f.PIECE
            expected = at[name][1].reshape(-1)[start : start + part.elements]
            np.testing.assert_array_equal(bits, expected, err_msg=f"{name} at {number}")
    assert seen == sorted(set(steps))
    assert set(decoded.values()) == {1}
    assert set(decoded) == set().union(*(needed(tier, part, seen) for part in parts))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """The blobs that are asked for while the test runs, in order."""
    found: list[Key] = []
    fetch = ExactTier.fetch

    def listing(self: ExactTier, keys: Any) -> Any:
        found.extend(keys)
        return fetch(self, keys)

    monkeypatch.setattr(ExactTier, "fetch", listing)
    return found


def test_no_other_frame_is_read(opened: relex_codec.Run, fetched: list[Key]) -> None:
    tier = opened._reader.decoder.exact
    parts = all_of(tier)
    for _ in replay_parts(tier, parts, [3, 11, 12], opened._reader.decoder.part_origin):
        pass
    assert len(fetched) == len(set(fetched))
    assert set(fetched) == {key for step in (3, 11, 12) for key in tier.blobs_of(parts, step)}


@pytest.mark.parametrize("steps", [range(1, 18), [1], [17], [7, 8], range(1, 18, 3), [16, 3, 9]], ids=str)
def test_blobs_are_read_in_the_order_of_the_plan(opened: relex_codec.Run, fetched: list[Key], steps: Any) -> None:
    tier = opened._reader.decoder.exact
    parts = all_of(tier)
    for _ in replay_parts(tier, parts, steps, opened._reader.decoder.part_origin):
        pass
    assert list(keys_of(tier, parts, steps)) == fetched


def test_the_origin_of_a_part_is_asked_for_once(opened: relex_codec.Run) -> None:
    tier = opened._reader.decoder.exact
    parts = all_of(tier)
    asked: Counter[Any] = Counter()

    def origin(part: Any) -> Any:
        asked[part] += 1
        return opened._reader.decoder.part_origin(part)

    for _ in replay_parts(tier, parts, range(1, 18), origin):
        pass
    assert asked == Counter(parts)


def test_work_that_is_spread_gives_the_same(opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opened._reader.decoder.exact
    parts = all_of(tier)
    found = []
    for least, processors, shares in ((1 << 40, 3, 1), (1, 1, 1), (1, 3, 3), (1, 40, 40)):
        monkeypatch.setattr(replay, "LANE_WORDS", least)
        monkeypatch.setattr(replay, "cpu_count", lambda count=processors: count)
        assert len(replay._shares(parts, processors)) == shares
        states = replay_parts(tier, parts, range(1, 18), opened._reader.decoder.part_origin)
        found.append([(number, [piece.tobytes() for piece in bits]) for number, bits in states])
    assert found[0] == found[1] == found[2] == found[3]


def test_threads_of_a_replay_end_when_the_caller_stops(
    opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "LANE_WORDS", 1)
    tier = opened._reader.decoder.exact
    before = threading.active_count()
    states = replay_parts(tier, all_of(tier), range(1, 18), opened._reader.decoder.part_origin, lanes=4)
    assert next(states)[0] == 1
    assert threading.active_count() == before + 3
    states.close()
    assert threading.active_count() == before


def test_few_batches_are_replayed_on_several_processors(
    opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened._reader.decoder.exact
    monkeypatch.setattr(replay, "LANE_WORDS", 1)
    given: list[tuple[int, int]] = []
    plain = replay._shares

    def shares(parts: Any, lanes: int) -> Any:
        given.append((len(parts), lanes))
        return plain(parts, lanes)

    monkeypatch.setattr(replay, "_shares", shares)
    count = len(list(batches(tier)))
    for processors in (1, 3 * count):
        monkeypatch.setattr(replay, "cpu_count", lambda processors=processors: processors)
        given.clear()
        seen: Counter[int] = Counter()
        lock = threading.Lock()

        def use(parts: Any, number: int, bits: Any, seen: Counter[int] = seen, lock: Any = lock) -> None:
            with lock:
                seen[number] += len(parts)

        replay_all(tier, range(1, 18), opened._reader.decoder.part_origin, use)
        assert seen == Counter(dict.fromkeys(range(1, 18), len(all_of(tier))))
        assert [lanes for _, lanes in given] == [max(1, processors // count)] * count


def test_only_what_a_later_segment_begins_from_is_kept(opened: relex_codec.Run) -> None:
    tier = opened._reader.decoder.exact
    parts = tier.pieces(opened._reader.entry("large").number, 0, 2)
    arrays: dict[int, weakref.ref[Any]] = {}
    for number, bits in replay_parts(tier, parts, range(1, 18), opened._reader.decoder.part_origin):
        arrays[number] = weakref.ref(bits[1])
        alive = {step for step, array in arrays.items() if array() is not None}
        assert alive - {number} <= {segment.left for segment in tier.segments if segment.first >= number}
        del bits


# ---- Batches ----


def test_batches_have_every_part_once(opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = opened._reader.decoder.exact
    sizes = [tensor.size for tensor in opened._reader.container.index.manifest.tensors]
    for limit in (1 << 20, 1 << 18, 1):
        monkeypatch.setattr(replay, "BATCH_WORDS", limit)
        found = list(batches(tier))
        parts = [part for parts in found for part in parts]
        assert len(set(parts)) == len(parts)
        assert all(len(batch) == 1 or sum(part.words for part in batch) <= limit for batch in found)
        for tensor, size in enumerate(sizes):
            assert sum(part.elements for part in parts if part.tensor == tensor) == size
    assert all(len(batch) == 1 for batch in found)


def test_what_fails_stops_the_others(opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_WORDS", 1)
    monkeypatch.setattr(replay, "cpu_count", lambda: 3)
    calls: list[int] = []

    def use(parts: Any, number: int, bits: Any) -> None:
        calls.append(number)
        if len(calls) == 5:
            raise KeyError("as if")

    with pytest.raises(KeyError, match="as if"):
        replay_all(opened._reader.decoder.exact, range(1, 18), opened._reader.decoder.part_origin, use)
    assert len(calls) < 5 + 3 * 17


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_WORDS", f.PIECE)
    monkeypatch.setattr(replay, "cpu_count", lambda: 1)
    monkeypatch.setattr("relex_codec.exact.tier_reader.CACHE", 0)
    rng = np.random.default_rng(0)
    start, noise = rng.standard_normal((2, 6, f.PIECE), np.float32)
    peaks = []
    for pieces in (1, 6):
        root = tmp_path / str(pieces)

        def at(step: int, pieces: int = pieces) -> dict[str, Tensor]:
            return {"w": bf16(start[:pieces] + 0.01 * step * noise[:pieces])}

        write_checkpoint(root / "base", at(0))
        write_run(root / "run", [1, 2, 3, 4], at)
        options: dict[str, Any] = {"base": root / "base", "quality": "micro", "exact": True}
        relex_codec.encode(root / "run", root / "x.relex", **options)
        with relex_codec.open(root / "x.relex") as run:
            run._reader.bits("w", 4)
            tracemalloc.start()
            assert run.check_exact() == 4
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# ---- iter_steps ----


def test_iter_steps_gives_every_step(opened: relex_codec.Run, decoded: Counted) -> None:
    seen = []
    for step, state in opened.iter_steps():
        seen.append((step, state))  # a caller may keep them
    assert [step for step, _ in seen] == STEPS
    assert set(decoded.values()) == {1}
    for step, state in seen:
        assert list(state) == opened.keys()
        for name, (dtype, bits) in tensors(step).items():
            tensor = state[name]
            assert (opened._reader.entry(name).dtype, tuple(tensor.shape)) == (dtype, bits.shape)
            assert tensor.dtype == opened.tensor(name, step).dtype and tensor.device.type == "cpu"
            raw = tensor.contiguous().view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)
            assert raw.numpy().tobytes() == bits.tobytes(), (name, step)


def test_tensors_of_different_steps_share_nothing(opened: relex_codec.Run) -> None:
    kept: list[Any] = []
    for step, state in opened.iter_steps(start=7, stop=16):
        expected = tensors(step)
        for name in ("large", "still", "late", "later", "added"):
            np.testing.assert_array_equal(bits_of(state[name]), expected[name][1].reshape(-1), err_msg=f"{name} {step}")
        for tensor in state.values():
            tensor.zero_()
        kept.append(state)
    places = [tensor.data_ptr() for state in kept for tensor in state.values() if tensor.numel()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, None, STEPS), (9, None, STEPS[8:]), (None, 9, STEPS[:9]), (9, 15, [9, 10, 11, 15]), (12, 15, [15]),
        (5, 5, [5]), (-3, 1.5, [1]), (30, 1000, [30]), (9.5, 11.0, [10, 11]),
    ],
)  # fmt: skip
def test_both_ends_are_included(
    opened: relex_codec.Run, decoded: Counted, start: float | None, stop: float | None, expected: list[int]
) -> None:
    assert [step for step, _ in opened.iter_steps(start=start, stop=stop)] == expected
    tier = opened._reader.decoder.exact
    numbers = [STEPS.index(step) + 1 for step in expected]
    assert set(decoded.values()) == {1}
    assert set(decoded) == set().union(*(needed(tier, part, numbers) for part in all_of(tier)))


def test_ranges_without_a_step_are_refused_at_once(opened: relex_codec.Run, zoo_file: Callable[..., Path]) -> None:
    for start, stop in ((31, None), (None, 0), (12, 14), (9, 8), (float("nan"), None)):
        with pytest.raises(InvalidArgument, match=r"leaves nothing, there is 1 to 30 \(17 steps\)"):
            opened.iter_steps(start=start, stop=stop)
    with relex_codec.open(zoo_file("raw")) as run:
        with pytest.raises(InvalidArgument, match="no exact tier"):
            run.iter_steps()
        with pytest.raises(InvalidArgument, match="no exact tier"):
            run.check_exact()


def test_every_kind_of_tensor(zoo_run: Made, zoo_file: Callable[..., Path]) -> None:
    for options in ({}, {"embed_base": True}):
        with relex_codec.open(zoo_file("micro", exact=True, **options)) as run:
            for step, state in run.iter_steps():
                for name, (_, bits) in zoo_run.at(step).items():
                    if bits.size:
                        np.testing.assert_array_equal(bits_of(state[name]), bits.reshape(-1), err_msg=f"{name} {step}")
            assert run.check_exact() == len(zoo_run.steps)


# ---- Damage ----


def test_a_wrong_base_is_named(long: Made, tmp_path: Path) -> None:
    for wrong in ("large", "still", "later", "count"):
        other = dict(tensors(0))
        dtype, bits = other[wrong]
        changed = bits.copy()
        changed.reshape(-1)[-1] ^= changed.dtype.type(1)
        other[wrong] = dtype, changed
        write_checkpoint(tmp_path / wrong, other)
        with relex_codec.open(long.root / "x.relex", base=tmp_path / wrong) as run:
            with pytest.raises(BaseMismatch, match=f"'{wrong}' differs"):
                next(run.iter_steps(start=3, stop=4))
            with pytest.raises(BaseMismatch, match=f"'{wrong}' differs"):
                run.check_exact()


def test_a_damaged_blob_is_named_by_its_byte(long: Made, tmp_path: Path) -> None:
    data = bytearray((long.root / "x.relex").read_bytes())
    with relex_codec.open(long.root / "x.relex") as run:
        tier = run._reader.decoder.exact
        at = int(tier.frame_records[4]["position"]) + 60  # step 5
    data[at] ^= 1
    (tmp_path / "bad.relex").write_bytes(data)
    with relex_codec.open(tmp_path / "bad.relex", base=long.base_path) as run:
        with pytest.raises(Corrupt, match=r"relex\.data\.frames, at byte \d+, does not match its checksum"):
            run.check_exact()
        steps = run.iter_steps()
        with pytest.raises(Corrupt, match="checksum"):
            list(steps)
        for step in (2, 7, 30):  # which need no frame of step 5
            assert [found for found, _ in run.iter_steps(start=step, stop=step)] == [step]


def test_digests_are_checked(opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PartDecoder.bits

    def wrong(self: PartDecoder) -> Any:
        found = plain(self)
        if self.dtype == "F16" and self.count == 3:
            found[-1] ^= 1
        return found

    monkeypatch.setattr(PartDecoder, "bits", wrong)
    seen: list[int] = []
    with pytest.raises(Corrupt, match=r"tensor '(half|later)' of step 20 differs from its digest"):
        seen.extend(step for step, _ in opened.iter_steps())
    assert seen == STEPS[: STEPS.index(20)]
    with pytest.raises(Corrupt, match="of step 20 differs"):
        opened.check_exact()
    assert next(opened.iter_steps(start=3, stop=3))[0] == 3


def test_a_stream_that_does_not_decode_names_its_tensor(
    opened: relex_codec.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PartDecoder._decode

    def broken(self: PartDecoder, *arguments: Any, **named: Any) -> Any:
        if self.dtype == "F32":
            raise Corrupt("a stream does not decode")
        return plain(self, *arguments, **named)

    monkeypatch.setattr(PartDecoder, "_decode", broken)
    with pytest.raises(Corrupt, match=r"x\.relex: tensor 'single': a stream does not decode"):
        list(opened.iter_steps(start=2, stop=4))


# ---- verify and info ----


def test_verify_restores_where_it_has_the_base(long: Made, zoo_file: Callable[..., Path]) -> None:
    def verify(*arguments: object) -> str:
        done = CliRunner().invoke(group, ["verify", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    file, embedded = long.root / "x.relex", zoo_file("micro", exact=True, embed_base=True)
    assert "its steps were not restored, which takes --base" in verify(file)
    assert json.loads(verify(file, "--json"))["restored_steps"] is None
    text = verify(file, "--base", long.base_path)
    assert "is its base; all 17 steps are restored bit for bit" in text
    assert json.loads(verify(file, "--base", long.base_path, "--json"))["restored_steps"] == 17
    assert json.loads(verify(embedded, "--json"))["restored_steps"] == 7
    assert "restored" not in verify(zoo_file("raw"))


def test_info_tells_of_the_tier(long: Made, zoo_file: Callable[..., Path]) -> None:
    with relex_codec.open(long.root / "x.relex") as run:
        document = run.info()
        entries = run._reader.container.index.entries
        assert document["tiers"] == ["line", "track", "exact"]
        stored = sum(entries[name].end - entries[name].begin for name in f.FRAME_ENTRIES)
        assert document["bytes"]["exact"] == stored > 0  # framed tensors too
        total = document["bytes"]["total"]
        assert sum(document["bytes"][kind] for kind in KINDS) == total == run._reader.container.source.size
        exact = document["exact"]
        assert (exact["steps"], exact["segments"]) == (17, 7)
        assert exact["bits_per_parameter_and_step"] == pytest.approx(8 * stored / document["parameters"] / 17, 1e-4)
        assert "all 17 steps bit for bit in 7 segments, " in text(document)
        assert len(text(document).splitlines()) <= 24
    with relex_codec.open(zoo_file("raw")) as run:
        document = run.info()
        assert document["tiers"] == ["line", "track"] and document["exact"] is None
        assert "bit for bit" not in text(document)
