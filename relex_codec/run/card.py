"""Model cards, as the Hub shows them: of a file, and of an adapter that was made of one. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relex_codec._version import __version__
from relex_codec.core.text import on_one_line
from relex_codec.trust.horizon import shown_step

from .base_name import hub_name
from .info import left_out_text, needs_base

if TYPE_CHECKING:
    from .adapter import Adapter


def run_card(document: Mapping[str, Any], place: str, pictures: Sequence[str] = ()) -> str:
    """Return the model card of a file.

    Args:
        document: of `Run.info`.
        place: what the file is called in commands: its name, or its URL.
        pictures: names of pictures of the run, which lie where the card goes.
    """
    steps, observed, sizes = document["steps"], document["observed_steps"], document["bytes"]
    base, revision = hub_name(document["base"])
    on_hub = base is not None and str(document["base"]).startswith("hf://")
    name = place.rstrip("/").rpartition("/")[2]
    meta: dict[str, Any] = {"base_model": base, "base_model_relation": "finetune"} if on_hub else {}
    meta |= {"library_name": "relex-codec", "tags": ["relex-codec", "rlvr", "training-trajectory", "checkpoints"]}
    of = f"[{base}](https://huggingface.co/{base})" if on_hub else _code(document["base"] or "a base that is not named")
    parts = [
        _front(meta),
        f"# {_text(name.removesuffix('.relex'))}",
        f"A training run of {of}{_at(revision)} in one file, {_code(name)}: the weights of any of its steps, without "
        "the checkpoints.",
        *(f"![What the run did]({picture})" for picture in pictures),
        "## What is in it",
        _table(("", ""), _facts(document, steps, observed, sizes)),
        "## What comes back",
        _table(("read from", "steps", "what it gives"), _tiers(document, steps)),
        _trust(document),
    ]
    if document["scores"] and document["scores"]["scores"]:
        metric = document["scores"]["metric"]
        rows = [(shown_step(one["step"]), one["tier"], f"{one['score']:g}") for one in document["scores"]["scores"]]
        parts += ["## Scores", *([_text(metric) + ":"] if metric else []), _table(("step", "of", "score"), rows)]
    parts += ["## How to decode it", _commands(document, place, observed[-1])]
    if document["left_out"]:
        parts += ["## What is not in it", _text(left_out_text(dict(document))) + "."]
    parts.append(f"Digest of header and root: {_code(str(document['digest']))}. Card by relex-codec {__version__}.")
    return "\n\n".join(parts) + "\n"


def adapter_card(note: Mapping[str, Any], made: Adapter, base: str | None, settings: Mapping[str, Any]) -> str:
    """Return the model card of an adapter.

    Args:
        note: what ``relex.json`` says.
        made: what is in it.
        base: what the base is called.
        settings: content of ``adapter_config.json``.
    """
    step, tier = float(note["step"]), str(note["tier"])
    on_hub = base is not None and str(note["base"]).startswith("hf://")
    meta: dict[str, Any] = {"base_model": base, "base_model_relation": "adapter"} if on_hub else {}
    meta |= {"library_name": "peft"}
    meta |= {"pipeline_tag": "text-generation"} if settings["task_type"] == "CAUSAL_LM" else {}
    meta |= {"tags": ["lora", "relex-codec", "rlvr"]}
    first, last = note["observed"]
    beyond = not first <= step <= last
    what = (
        f"**This step was never trained.** It lies on the line through the observed steps {first} to {last}."
        if beyond
        else f"It is near what was trained, from tier {_code(tier)}; the run was observed from step {first} to {last}."
    )
    left = "; ".join(f"{100 * share:.2g} % {why}" for why, share in made.left_out.items())
    rows = [
        ("base", _code(base or "not named")),
        ("rank", str(made.rank)),
        ("share of the squared change that is in it", f"{100 * made.kept:.4g} %"),
        *([("left out", _text(left))] if left else []),
        ("made of", f"{_code(str(note['file']))}, digest {_code(str(note['digest']))}"),
        ("made by", _text(str(note["producer"]))),
    ]
    code = _python(base, settings)
    return "\n\n".join([
        _front(meta), f"# Step {shown_step(step)}, as an adapter",
        f"What a training run had changed at step {shown_step(step)}, as an adapter for its base. {what}",
        *(f"> {_text(line)}" for line in note["notes"]), _table(("", ""), rows), code,
    ]) + "\n"  # fmt: skip


def _python(base: str | None, settings: Mapping[str, Any]) -> str:
    kind = "AutoModelForCausalLM" if settings["task_type"] == "CAUSAL_LM" else "AutoModel"
    tied = ", with ensure_weight_tying" if settings.get("ensure_weight_tying") else ""
    experts = ", 0.19 or newer for experts" if settings.get("target_parameters") else ""
    return "\n".join([
        f"With peft{experts}{tied}:", "", "```python", "from peft import PeftModel",
        f"from transformers import {kind}", "", f"base = {kind}.from_pretrained({json.dumps(base or 'BASE')})",
        'model = PeftModel.from_pretrained(base, "this directory")', "```",
    ])  # fmt: skip


def _facts(
    document: Mapping[str, Any], steps: Sequence[int], observed: Sequence[int], sizes: Mapping[str, int]
) -> list[tuple[str, str]]:
    count = f"{len(steps)}, {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"1, {steps[0]}"
    return [
        ("steps", count),
        ("observed, which the line was fitted on", f"{len(observed)}, to {observed[-1]}"),
        ("parameters", f"{document['parameters']:,} in {document['tensors']:,} tensors"),
        ("size", f"{sizes['total']:,} bytes, {document['ratio']:,} times smaller than the checkpoints"),
        (
            "base",
            "in the file" if document["base_embedded"] else "needed" if needs_base(dict(document)) else "not needed",
        ),
        ("quality", _text(document["quality"])),
        ("format", f"version {document['version']}, by {_text(document['producer'])}"),
    ]


def _tiers(document: Mapping[str, Any], steps: Sequence[int]) -> list[tuple[str, str, str]]:
    rows = []
    if document["exact"]:
        rows.append(("`exact`", f"the {len(steps)} stored ones", "every bit of the checkpoint, checked by digests"))
    span = f"{steps[0]} to {steps[-1]}"
    rows.append(("`track`", f"{span}, and between", f"near the trained weights{_off(document, 'track')}"))
    rows.append(("`line`", "any number", f"a straight line from the base{_off(document, 'line')}; beyond, no promise"))
    return rows


def _off(document: Mapping[str, Any], tier: str) -> str:
    known = [value for value in document["errors"][tier] if value is not None]
    if not known:
        return ""
    return f": off by {100 * sorted(known)[len(known) // 2]:.3g} % of the change at the median step"


def _trust(document: Mapping[str, Any]) -> str:
    if document["trust"] is None:
        return "How far beyond the observed steps the line may be believed is not known; score what you extrapolate."
    return (
        "Beyond the observed steps: " + _text("; ".join(document["trust"]["words"])) + ". Score what you extrapolate."
    )


def _commands(document: Mapping[str, Any], place: str, last: int) -> str:
    quoted = json.dumps(place, ensure_ascii=False)
    shell = "'" + place.replace("'", "'\\''") + "'" if not place.replace("/", "").replace(".", "").isalnum() else place
    base = "" if document["base"] or document["base_embedded"] else " --base BASE"
    lines = ["```sh", "pip install relex-codec", f"relex-codec info {shell}"]
    lines.append(f"relex-codec decode {shell} --step {last}{base} -o step-{last}")
    lines.append(f"relex-codec adapter {shell} --step {last}{base} -o step-{last}-lora")
    if document["exact"]:
        lines.append(f"relex-codec restore {shell}{base} -o run")
    opened = f"relex_codec.open({quoted}{', base=BASE' if base else ''})"
    lines += ["```", "", "```python", "import relex_codec", "", f"with {opened} as run:"]
    lines += [f"    run.load_into(model, {last})", "```"]
    return "\n".join(lines)


def _front(meta: Mapping[str, Any]) -> str:
    """Return the front matter: YAML, of which JSON's strings and lists are a part."""
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in meta.items()), "---"]
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _text(words: object) -> str:
    """Return words of others as plain text in Markdown, in which they can neither link nor hold HTML."""
    shown = on_one_line(str(words))
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#!|" else letter for letter in shown).replace("\\|", "|")


def _code(words: object) -> str:
    """Return words of others as code."""
    return "`" + on_one_line(str(words)).replace("`", "'") + "`"


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at {_code(revision)}"
