"""Made-up RLVR runs of any size, close to real ones in what an exact codec sees.

usage: python benchmarks/generator.py OUT [--parameters 100] [--steps 64] [--changed 0.01] [--every 1] [--seed 0]
       python benchmarks/generator.py --check [FOLDER ...]

The first form writes OUT/base/ and OUT/run/global_step_N/ (parameters in millions); the second prints the statistics
below of runs on disk, and of generated runs of 4 M parameters.

The weights are bf16 roundings of float32 masters, which begin at the rounded base, as in training from a published
model. They are normal with deviation 0.02; norms begin at 1. A step adds the learning rate times (drift + noise): the
drift is constant, normal with deviation 1, half of its variance of rank 4 in every matrix, cut at 3.2; the noise is
uniform within 0.53. So the weights move nearly along lines, and no update is much above the learning rate, as with
Adam. The learning rate is searched, on a sample of the elements, for the share of values that change per step.

Measured with --check, real runs (1.58 M parameters) against generated ones; a change reverts if it undoes the last
change of the same value:

                  steps  changed per step  unlike base  reverts  changed before  by one unit
    sparse           16       0.86 %          5.2 %      2.8 %       62 %           85 %
    generated 0.01   16       0.78 %          5.2 %      2.2 %       58 %           85 %
    sparse           64       1.00 %         18.9 %      1.9 %       70 %           88 %
    generated 0.01   64       1.00 %         19.9 %      2.8 %       69 %           88 %
    dense            16       3.28 %         19.6 %      2.8 %       62 %           84 %
    generated 0.035  16       2.97 %         19.4 %      2.2 %       59 %           85 %
    dense            64       3.50 %         57.9 %      2.7 %       74 %           87 %
    generated 0.035  64       3.51 %         56.1 %      3.1 %       75 %           87 %

Only the noise (three times as much makes 20 % of the changes revert) and the learning rate were fitted. The real runs
differ at their beginning, where Adam's updates are largest: at the first step 0.8 % of the sparse run's values change,
here 0.3 %. They also bend: after 300 steps 85 % of the dense run's values are unlike the base, while a constant drift
gets to 89 %. `changed` is sensible from 0.0002 (`unlike base` after 64 steps: 0.4 %) to 0.5 (95 % after 16).

100 M parameters take 0.5 GB of memory and about 0.7 s a step on one core, most of it for writing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from exact_source import Source, ordered
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Drift = NDArray[np.int8]  # in units of 1 / DRIFT

DEVIATION, RANK = 0.02, 4
DRIFT, NOISE = 40, 240  # noise is -128 to 127 in units of 1 / NOISE
CHUNK = 1 << 16  # elements in work at a time; the arrays of one chunk fit a second-level cache
SAMPLE, CALIBRATION_STEPS = 1 << 18, 64


def shapes(parameters: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a model of about so many parameters (to within its width), by name.

    Layers as those of Qwen2, 2048 wide, or narrower if less than two fit; the embedding takes what is left.
    """
    for width in (2048, 1024, 512, 256, 128, 64):
        inner, narrow = width * 11 // 4, width // 8
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (width,),
            "mlp.down_proj.weight": (width, inner),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "post_attention_layernorm.weight": (width,),
            "self_attn.k_proj.bias": (narrow,),
            "self_attn.k_proj.weight": (narrow, width),
            "self_attn.o_proj.weight": (width, width),
            "self_attn.q_proj.bias": (width,),
            "self_attn.q_proj.weight": (width, width),
            "self_attn.v_proj.bias": (narrow,),
            "self_attn.v_proj.weight": (narrow, width),
        }
        size = sum(int(np.prod(shape)) for shape in layer.values())
        if parameters >= 2 * size + 2 * width:
            break
    layers = max(1, (parameters - 2 * width) * 9 // 10 // size)
    rows = max(1, (parameters - layers * size) // width - 1)
    found = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    found |= {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    return dict(sorted(found.items()))


def write_run(
    folder: Path, parameters: int, steps: int, *, changed: float = 0.01, every: int = 1, seed: int = 0
) -> None:
    """Write a base and `steps` checkpoints into `folder`; holds 5 bytes per parameter in memory.

    Args:
        folder: takes base/ and run/, which must not exist.
        parameters: about how many values a checkpoint has.
        steps: how many checkpoints are written, besides the base.
        changed: share of values that differ after one step of the optimizer, on average over the first 64.
        every: steps of the optimizer from one checkpoint to the next. The noise of these steps is drawn at once.
        seed: the same seed gives the same bytes.
    """
    random = np.random.Generator(np.random.SFC64(seed))
    layout = shapes(parameters)
    masters, drift = _start(layout, random)
    rate = _learning_rate(masters, drift, changed, min(steps * every, CALIBRATION_STEPS), seed)
    header, config = _header(layout), _config(layout)
    for step in range(steps + 1):
        out = folder / ("base" if step == 0 else f"run/global_step_{step * every}")
        out.mkdir(parents=True)
        (out / "config.json").write_text(config)
        with open(out / "model.safetensors", "wb") as file:
            file.write(header)
            for begin in range(0, masters.size, CHUNK):
                part = slice(begin, begin + CHUNK)
                if step:
                    _advance(masters[part], drift[part], rate, every, random)
                file.write(_rounded(masters[part]).tobytes())


def _start(layout: dict[str, tuple[int, ...]], random: np.random.Generator) -> tuple[Floats, Drift]:
    """Return the masters, which bf16 holds exactly, and the drift of all tensors after each other."""
    size = sum(int(np.prod(shape)) for shape in layout.values())
    masters, drift = np.empty(size, np.float32), np.empty(size, np.int8)
    begin = 0
    for name, shape in layout.items():
        rows, width = (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])
        low, right = (random.standard_normal((n, RANK), np.float32) for n in (rows, width))
        share = np.float32(0.5 if rows > 1 else 0)
        block = max(1, CHUNK // width)
        for row in range(0, rows, block):
            part = slice(begin + row * width, begin + min(rows, row + block) * width)
            values = random.standard_normal(part.stop - part.start, np.float32)
            line = (low[row : row + block] @ right.T).reshape(-1) * np.sqrt(share / RANK)
            moves = DRIFT * (line + np.sqrt(1 - share) * random.standard_normal(values.size, np.float32))
            drift[part] = np.clip(np.rint(moves), -127, 127)
            masters[part] = 1 if "norm" in name else values * DEVIATION
        begin += rows * width
    for begin in range(0, size, CHUNK):
        part = slice(begin, begin + CHUNK)
        masters[part] = (_rounded(masters[part]).astype(np.uint32) << 16).view(np.float32)
    return masters, drift


def _advance(masters: Floats, drift: Drift, rate: float, every: int, random: np.random.Generator) -> None:
    """Take `every` steps of the optimizer with elements that lie after each other."""
    noise = np.frombuffer(random.bytes(masters.size), np.int8)
    moves = noise * np.float32(rate * every**0.5 / NOISE)
    moves += drift * np.float32(rate * every / DRIFT)
    masters += moves


def _rounded(values: Floats) -> NDArray[np.uint16]:
    """Return the nearest bf16 values, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)


def _learning_rate(masters: Floats, drift: Drift, changed: float, steps: int, seed: int) -> float:
    """Return the rate at which this share of values changes per step, by bisection on every n-th element."""
    stride = max(1, masters.size // SAMPLE) | 1
    start, moves = masters[::stride].copy(), drift[::stride].copy()
    low, high = -40.0, 0.0
    for _ in range(14):
        middle = (low + high) / 2
        random = np.random.Generator(np.random.SFC64(seed + 1))
        values, before, count = start.copy(), _rounded(start), 0
        for _ in range(steps):
            _advance(values, moves, 2**middle, 1, random)
            now = _rounded(values)
            count += int(np.count_nonzero(now != before))
            before = now
            if count > changed * steps * start.size:
                high = middle
                break
        else:
            low = middle
    return float(2 ** ((low + high) / 2))


def _header(layout: dict[str, tuple[int, ...]]) -> bytes:
    """Return what stands before the data in a safetensors file."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in layout.items():
        end = begin + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _config(layout: dict[str, tuple[int, ...]]) -> str:
    """Return a config.json that fits the shapes."""
    rows, width = layout["model.embed_tokens.weight"]
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16", "vocab_size": rows,
        "hidden_size": width, "intermediate_size": width * 11 // 4, "num_attention_heads": 8, "num_key_value_heads": 1,
        "num_hidden_layers": sum(name.endswith("q_proj.bias") for name in layout), "tie_word_embeddings": True,
    }  # fmt: skip
    return json.dumps(config, indent=2) + "\n"


def statistics(folder: Path, marks: tuple[int, ...]) -> list[str]:
    """Return rows of a table: how a run changes up to each of these steps, and up to its last."""
    source, rows = Source(folder), []
    base = before = source.read(0)
    last = np.zeros(base.size, np.int32)
    changes = reverts = again = units = 0
    for position in range(1, len(source.numbers) + 1):
        now = source.read(position)
        where = np.flatnonzero(now != before)
        change = ordered(now[where]).astype(np.int32) - ordered(before[where])
        changes, reverts = changes + where.size, reverts + int((change == -last[where]).sum())
        again, units = again + int(np.count_nonzero(last[where])), units + int((abs(change) == 1).sum())
        last[where], before = change, now
        if position in (*marks, len(source.numbers)):
            per_step = changes / base.size / position
            shares = [np.count_nonzero(now != base) / base.size, reverts / changes, again / changes, units / changes]
            cells = [f"{per_step:.3%}", *(f"{share:.1%}" for share in shares)]
            rows.append(f"{folder.name:16} {position:5} " + " ".join(f"{cell:>14}" for cell in cells))
    return rows


def check(folders: list[Path], marks: tuple[int, ...] = (1, 16, 64)) -> None:
    """Print the statistics of runs on disk and of generated ones."""
    heads = ("per step", "unlike base", "reverts", "changed before", "by one unit")
    print(f"{'run':16} {'steps':>5} " + " ".join(f"{head:>14}" for head in heads))
    for folder in folders:
        print("\n".join(statistics(folder, marks)), flush=True)
    for changed, steps in ((0.0002, 64), (0.01, 64), (0.035, 64), (0.5, 16)):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / f"generated {changed}"
            write_run(folder, 4 * 10**6, steps, changed=changed)
            print("\n".join(statistics(folder, marks)), flush=True)


def main() -> None:
    """Generate a run, or check what is generated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="OUT")
    parser.add_argument("--check", action="store_true", help="print statistics; OUT are then runs to read, if any")
    parser.add_argument("--parameters", type=float, default=100, help="in millions")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--changed", type=float, default=0.01)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.check:
        return check(args.folders)
    if len(args.folders) != 1:
        parser.error("exactly one OUT")
    start = time.perf_counter()
    write_run(args.folders[0], int(args.parameters * 1e6), args.steps, changed=args.changed, every=args.every,
              seed=args.seed)  # fmt: skip
    print(f"{args.steps} checkpoints in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
