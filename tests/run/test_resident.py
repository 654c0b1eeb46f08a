"""A run on a device: the same bits as from the file, without reading it; switching a live module."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument, Run
from relex_codec.kernels import torch_eager
from relex_codec.run import held_weights, resident
from support.checkpoints import write_checkpoint, write_run
from support.runs import Made
from support.tensors import bf16

Zoo = Callable[..., Path]
STEPS = [0, 1, 3, 9, 12.5, 23, 40]


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare bit patterns."""
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        assert torch.equal(bits(got[name]), bits(value)), name


def bits(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1)]).view(torch.uint8)  # in memory of its own


def made_on(
    monkeypatch: pytest.MonkeyPatch, run: Run, kernel: str, **options: Any
) -> relex_codec.run.resident.Resident:
    """Resident on the CPU: numpy arrays, or the way of devices, by torch's operations or Triton's interpreter."""
    if kernel != "cpu":
        prepare = (
            pytest.importorskip("relex_codec.kernels.triton.launch").prepare
            if kernel == "triton"
            else torch_eager.prepare
        )
        monkeypatch.setattr(resident, "is_host", lambda _: False)
        monkeypatch.setattr(resident, "device_kernel", lambda _: prepare)
    return run.resident(device="cpu", **options)


KERNELS = ["cpu", "torch", "triton"]
EACH = pytest.mark.parametrize("kernel", KERNELS)


TWO = {"quality": "default", "rank": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "options"),
    [*((k, {"quality": q}) for k in ("cpu", "torch") for q in ("raw", "small")), *((k, TWO) for k in KERNELS)],
)
def test_every_kind_of_tensor(
    zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch, kernel: str, options: dict[str, Any]
) -> None:
    with relex_codec.open(zoo_file(**options)) as run:
        held = made_on(monkeypatch, run, kernel)
        expected = {step: run.state_dict(step) for step in STEPS}
    # closed: nothing more can be read
    assert held.keys() == list(expected[0]) and str(held.device) == "cpu" and held.nbytes > 0
    for step, state in expected.items():
        same(held.state_dict(step), state)
    for got, step in zip(held.state_dicts(STEPS), STEPS, strict=True):
        same(got, expected[step])


@pytest.mark.slow
@EACH
def test_in_a_file_with_the_exact_tier(zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """``auto`` is what it is in a file without that tier; tensors of the exact tier alone are held as they change."""
    with relex_codec.open(zoo_file("default", exact=True)) as run:
        held = made_on(monkeypatch, run, kernel)
        for step in STEPS:
            tier = held.tier(step)
            assert tier == ("track" if 1 <= step <= 23 else "line")  # also at 0: the base lacks a tensor
            same(held.state_dict(step), run.state_dict(step, tier=tier))
        with pytest.raises(InvalidArgument, match="exact"):
            held.state_dict(9, tier="exact")
        with pytest.raises(InvalidArgument, match="track"):
            held.state_dict(40, tier="track")


@EACH
def test_slices(zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Rows, columns, experts, both: what is held is decoded as the slice of the whole."""
    slices: dict[str, Any] = {
        "model.embed_tokens.weight": slice(10, 20),
        "layers.0.proj.weight": (slice(None), slice(16, 48)),
        "layers.0.experts": (slice(1, 3), slice(None), slice(5, 7)),
        "layers.1.half": (slice(3, 4), slice(2, 9)),
        "layers.1.single": (..., slice(2, 9)),
        "layers.0.norm.weight": slice(5, 5),
        "positions": slice(1, 3),
        "added": (7,),
    }
    with relex_codec.open(zoo_file("default")) as run:
        held = made_on(monkeypatch, run, kernel, slices=slices)
        for step in (0, 3, 40):
            whole = run.state_dict(step)
            expected = {name: value[slices.get(name, ...)] for name, value in whole.items()}
            same(held.state_dict(step), expected)
            same(run.state_dict(step, slices=slices), expected)
            for name, index in slices.items():
                assert torch.equal(bits(run.tensor(name, step, index=index)), bits(expected[name]))
                box = run._reader.box(name, step, index=index)
                assert box.shape == expected[name].shape
                assert box.tobytes() == bits(expected[name]).numpy().tobytes()
        assert held.nbytes < run.resident().nbytes
        with pytest.raises(InvalidArgument, match="no tensor 'nothing'"):
            run.resident(slices={"nothing": slice(2)})


class Model(torch.nn.Module):
    """Parameters of which some lie anywhere: transposed, in a fused one, with a row apart, every other element."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Parameter(torch.zeros(48 + 16, 64, dtype=torch.bfloat16))
        self.turned = torch.nn.Parameter(torch.zeros(24, 40, dtype=torch.bfloat16).t())
        self.apart = torch.nn.Parameter(torch.zeros(8, 32, dtype=torch.bfloat16)[:, :24])
        self.register_buffer("norm", torch.zeros(16, 2, dtype=torch.bfloat16)[:, 1])
        self.wide = torch.nn.Parameter(torch.zeros(6, 6))
        self.tied = torch.nn.Module()
        self.tied.weight = self.turned


NAMES: dict[str, Any] = {"q": ("qkv", slice(0, 48)), "k": ("qkv", slice(48, 64)), "turned.weight": "turned"}


@pytest.fixture(scope="module")
def moving_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model for `Model`."""
    from support.runs import moving

    root = tmp_path_factory.mktemp("moving")
    shapes = {"q": (48, 64), "k": (16, 64), "turned.weight": (40, 24), "apart": (8, 24), "norm": (16,), "wide": (6, 6)}
    movers = {name: moving(shape, i, bf16) for i, (name, shape) in enumerate(shapes.items())}
    write_checkpoint(root / "base", {name: base for name, (base, _) in movers.items()})
    write_run(root / "run", [1, 4, 8], lambda step: {name: at(step) for name, (_, at) in movers.items()})
    relex_codec.encode(root / "run", root / "run.relex", base=root / "base")
    return root / "run.relex"


def check_module(module: Model, state: dict[str, torch.Tensor]) -> None:
    got = {
        "q": module.qkv[:48], "k": module.qkv[48:], "turned.weight": module.turned, "apart": module.apart,
        "norm": module.norm, "wide": module.wide.to(torch.bfloat16),
    }  # fmt: skip
    same(dict(sorted(got.items())), dict(sorted(state.items())))


@EACH
def test_switching_a_module(moving_file: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    module = Model()
    memory = {name: value.data_ptr() for name, value in module.state_dict(keep_vars=True).items()}
    with relex_codec.open(moving_file) as run:
        states = {step: run.state_dict(step) for step in (0, 2, 8, 30)}
        held = made_on(monkeypatch, run, kernel)
        run.load_into(module, 2, names=NAMES)
        check_module(module, states[2])
    for step, state in states.items():
        versions = {name: value._version for name, value in module.state_dict(keep_vars=True).items()}
        held.load_into(module, step, names=NAMES, non_blocking=step == 8)
        check_module(module, state)
        for name, value in module.state_dict(keep_vars=True).items():
            assert value.data_ptr() == memory[name]
            assert value._version > versions[name], name  # autograd sees that it was written
    assert module.tied.weight is module.turned


@EACH
def test_a_module_that_does_not_fit_stays_what_it_was(
    moving_file: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    with relex_codec.open(moving_file) as run:
        held = made_on(monkeypatch, run, kernel)
        for load in (held.load_into, run.load_into):
            module = Model()
            before = {name: value.clone() for name, value in module.state_dict().items()}
            bad: Sequence[dict[str, Any]] = (
                {"step": 2},
                {"step": 2, "names": {**NAMES, "k": None}},
                {"step": 2, "names": NAMES, "prefix": "model."},
                {"step": 1e300, "names": NAMES, "tier": "line"},
                {"step": 9, "names": NAMES, "tier": "track"},
            )
            for arguments in bad:
                with pytest.raises(InvalidArgument):
                    load(module, **arguments)
            same(module.state_dict(), before)


def test_nothing_is_read_again(zoo_file: Zoo, zoo_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where coefficients are too many to come with the index."""
    monkeypatch.setattr("relex_codec.format.reader.COEFFICIENTS_AT_OPEN", 0)
    with relex_codec.open(zoo_file("small")) as run:
        expected = run.state_dict(9)
        held = run.resident()
    monkeypatch.setattr("relex_codec.storage.source.LocalSource.read_many", None)
    monkeypatch.setattr("relex_codec.storage.source.LocalSource.read_into", None)
    same(held.state_dict(9), expected)


def test_a_tensor_that_changes_too_often(zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_weights, "FRAMED_LIMIT", 7)
    with relex_codec.open(zoo_file("raw")) as run, pytest.raises(InvalidArgument, match="step by step"):
        run.resident()


def test_what_is_held_is_not_handed_out(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("small")) as run:
        held = run.resident()
        for tier_step in (0, 9):
            first = held.state_dict(tier_step)
            for value in first.values():
                value.zero_()
            same(held.state_dict(tier_step), run.state_dict(tier_step))
    assert "tensors on cpu" in repr(held)


@pytest.mark.slow
@EACH
def test_slices_into_any_memory(moving_file: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Random boxes of matrices into views with gaps: nothing beside them is written."""
    rng = random.Random(0)
    with relex_codec.open(moving_file) as run:
        whole = run.state_dict(2)
        for _ in range(12 if kernel == "triton" else 60):
            slices = {name: tuple(box(rng, n) for n in value.shape) for name, value in whole.items()}
            held = made_on(monkeypatch, run, kernel, slices=slices)
            module, around = torch.nn.Module(), {}
            for name, value in whole.items():
                part = value[slices[name]]
                strides, step = [], rng.choice([1, 3])
                for n in reversed(part.shape):
                    strides.insert(0, step)
                    step = step * n + rng.choice([0, 2])
                around[name] = torch.full((step + 8,), -1.0, dtype=torch.bfloat16)
                module.register_buffer(name.replace(".", "_"), around[name][4:].as_strided(part.shape, strides))
            held.load_into(module, 2, names=lambda name: name.replace(".", "_"))
            for name, value in whole.items():
                part, target = value[slices[name]], module.get_buffer(name.replace(".", "_"))
                assert torch.equal(bits(target), bits(part)), (name, slices[name], target.stride())
                expected = torch.full_like(around[name], -1.0)
                expected[4:].as_strided(part.shape, target.stride()).copy_(part)
                assert torch.equal(bits(around[name]), bits(expected)), (name, slices[name], target.stride())


def box(rng: random.Random, n: int) -> Any:
    """An index of a dimension of n elements."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randrange(n)
    lo = rng.randrange(n)
    return slice(None) if kind == 1 else slice(lo, rng.randint(lo + 1, n))


def test_a_device_is_known_with_its_index(moving_file: Path) -> None:
    """So that parameters there are written directly: ``cuda`` is not ``cuda:0`` for torch."""
    with relex_codec.open(moving_file) as run:
        held = run.resident(device="cpu")
        assert held.device == torch.zeros(1).device
        module = Model()
        for _ in range(3):
            held.load_into(module, 2, names=NAMES)
        assert len(held._prepared) == 2  # all at once, and the float32 parameter alone
