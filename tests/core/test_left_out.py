"""What of a run is not in a file, in words."""

from __future__ import annotations

import pytest

from relex_codec.core.left_out import OTHER_FILES, OTHER_STEPS, SHOWN, LeftOut, by_kind, describe, kind_of

KINDS = {
    "optimizer states": [
        "optimizer.pt", "optimizer.bin", "actor/optim_world_size_*_rank_*.pt", "optimizer_*/__*_*.distcp",
        "global_step*/zero_pp_rank_*_mp_rank_*_optim_states.pt", "policy/optimizer/__*_*.distcp",
    ],
    "schedulers": ["scheduler.pt", "lr_scheduler.bin"],
    "random states": ["rng_state.pth", "rng_state_*.pth", "random_states_*.pkl"],
    "trainer's state": [
        "trainer_state.json", "training_args.bin", "actor/extra_state_world_size_*_rank_*.pt", "data.pt", "STABLE",
        "latest_checkpointed_iteration.txt", "train_dataloader_state.pt", "scaler.pt", "actor/fsdp_config.json",
    ],
    "value heads and other models": [
        "critic/", "critic/model_world_size_*_rank_*.pt", "value_head.safetensors", "v_head.bin", "ref/x.safetensors",
    ],
    "adapters": ["adapter_model.safetensors", "actor/lora_adapter/adapter_config.json"],
    "logs": ["runs/", "wandb/", "logs/", "events.out.tfevents.*.host.*.*", "train.log", "rollouts.jsonl"],
    "weights in other files": ["pytorch_model.bin", "actor/model_world_size_*_rank_*.pt", "__*_*.distcp", "x.gguf"],
    OTHER_STEPS: [OTHER_STEPS],
    OTHER_FILES: ["notes.txt", "thesis/", "tokenizer_old.json", "optional", "refusals/"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "what"), [(kind, what) for kind, names in KINDS.items() for what in names])
def test_kinds(kind: str, what: str) -> None:
    assert kind_of(what) == kind


def test_rows_of_a_kind_are_added_up_and_the_largest_come_first() -> None:
    rows = [
        LeftOut("rng_state_*.pth", 8, 80), LeftOut("scheduler.pt", 2, 200), LeftOut("random_states_*.pkl", 1, 1000),
        LeftOut("optimizer.pt", 2, 200),
    ]  # fmt: skip
    assert by_kind(rows) == [
        LeftOut("random states", 9, 1080), LeftOut("optimizer states", 2, 200), LeftOut("schedulers", 2, 200),
    ]  # fmt: skip


def test_what_every_step_has_is_told_by_the_step() -> None:
    rows = [LeftOut("optimizer.pt", 40, 400_000_000), LeftOut("rng_state_*.pth", 320, 4_000_000)]
    assert describe(rows, 40) == "optimizer states (10 MB a step), random states (100 kB a step)"
    assert describe(rows, 39) == describe(rows) == "optimizer states (400 MB), random states (4 MB)"
    assert describe([LeftOut(OTHER_STEPS, 40, 4000)], 4) == f"{OTHER_STEPS} (4 kB)"
    assert describe([LeftOut("optimizer.pt", 1, 4000)], 1) == "optimizer states (4 kB)"


def test_nothing_and_much() -> None:
    assert describe([], 3) == ""
    rows = [LeftOut(names[0], 1, 1000 + i) for i, names in enumerate(KINDS.values())]
    told = describe(rows)
    rest = sum(1000 + i for i in range(len(rows) - SHOWN)) / 1000
    assert told.endswith(f", and {len(rows) - SHOWN} more kinds ({rest:.3g} kB)")
    assert told.count("(") == SHOWN + 1
