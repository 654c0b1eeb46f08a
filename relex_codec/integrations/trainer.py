"""transformers' Trainer, and TRL's, which are Trainers too: every step is recorded as it is trained."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import TrainerCallback

from relex_codec.errors import InvalidArgument
from relex_codec.recording.recorder import Recorder
from relex_codec.storage.urls import PathLike


class RelexCallback(TrainerCallback):
    """Records the run of a Trainer as a journal (`relex_codec.Recorder`).

    Training that resumes from a checkpoint goes on with the journal after the last step up to that checkpoint's; steps
    that were recorded after it are left behind, as they are trained again. Under FSDP2, give the Trainer's other
    processes the callback too: each rank records its own shards.

    Args:
        path: of the journal.
        base: the model that training started from. Default: where the model was loaded from, be it a directory or a
            name on the Hub, whose files are then in the Hub's cache.
        every: record every so many steps, and the last one.
        output: a ``.relex`` file to write when training ends; None: the journal is all there is.
        options: further arguments of `Recorder`.

    Raises:
        InvalidArgument: `every` is below 1. While training: as `Recorder`.

    Examples:
        >>> from transformers import Trainer, TrainingArguments
        >>> from relex_codec.integrations.trainer import RelexCallback
        >>> model = relex_codec.load_model("run.relex", step=0)
        >>> text = {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}
        >>> few = TrainingArguments(
        ...     "out", max_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
        ... )
        >>> recording = RelexCallback("trained.journal", base="base/", output="trained.relex")
        >>> found = Trainer(model, few, train_dataset=[text] * 8, callbacks=[recording]).train()
        {'train_runtime': ...}
        >>> relex_codec.open("trained.relex").steps
        [1, 2, 3]
    """

    def __init__(
        self,
        path: PathLike,
        *,
        base: PathLike | None = None,
        every: int = 1,
        output: PathLike | None = None,
        **options: Any,
    ) -> None:
        if every < 1:
            raise InvalidArgument(f"every is {every}, expected at least 1")
        self._path, self._base, self._every, self._output, self._options = path, base, every, output, options
        self.recorder: Recorder | None = None
        """While training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Make or open the journal."""
        self._close()
        base = self._base if self._base is not None else _loaded_from(model)
        self.recorder = Recorder(self._path, base=base, after=int(state.global_step), **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record a step."""
        step = int(state.global_step)
        if self.recorder is not None and (
            step % self._every == 0 or step >= state.max_steps or control.should_training_stop
        ):
            self.recorder.add(step, model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the journal on disk at least as far as the checkpoint, from which training may resume."""
        if self.recorder is not None:
            self.recorder.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the journal, and write the file if one is wanted."""
        if self.recorder is not None and self._output is not None:
            self.recorder.finish(self._output)
        self._close()

    def _close(self) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.close()


def _loaded_from(model: Any) -> str | None:
    """Return the directory that a model was loaded from; for a name on the Hub, the one of its commit in the cache."""
    name: str | None = getattr(model, "name_or_path", None) or None
    if name is None or os.path.exists(name):
        return name
    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    try:
        found = try_to_load_from_cache(name, "config.json", revision=commit)
    except ValueError:  # no name on the Hub
        return name
    return os.path.dirname(found) if isinstance(found, str) else name
