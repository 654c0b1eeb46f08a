"""Writing steps of an open run to directories, with notes that say where they are from: what `Run` calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from relex_codec.core.filenames import PROVENANCE
from relex_codec.core.progress import Progress, progress_bar
from relex_codec.decoding.tiers import StepTier, layout_at
from relex_codec.errors import InvalidArgument
from relex_codec.format.step_layout import StepLayout
from relex_codec.storage.urls import Options, PathLike, join_path

from .export import export, nbytes
from .fitted import weights_along
from .provenance import as_bytes, note, note_of_restored
from .restore import choose_steps, restore
from .run_reader import RunReader
from .trusted import TrustedRun

if TYPE_CHECKING:
    from relex_codec.engines.choice import EngineChoice

    from .adapter import Adapter


def bar_for(what: str, layouts: Sequence[StepLayout], progress: bool) -> Progress:
    """Return a bar for the bytes of steps that are laid out so."""
    return progress_bar(what, sum(nbytes(one) for layout in layouts for one in layout.tensors), enabled=progress)


def save_step(
    run: TrustedRun,
    output: PathLike,
    at: StepTier,
    device: Any,
    *,
    along: str,
    provenance: bool,
    overwrite: bool,
    merge: bool,
    progress: bool,
    storage_options: Options,
) -> None:
    """Write a step as a checkpoint directory; arguments are those of `Run.save`."""
    reader = run._reader
    decoder = reader.decoder
    weights = weights_along(decoder, at, along, device)
    notes = {}
    if provenance:
        told = run._about(at.step, at.tier, along)
        notes[PROVENANCE] = as_bytes(note(reader.container, at.step, at.tier, along, *told))
    if merge:
        from .merged_adapter import save_merged

        save_merged(
            reader, output, at, weights, notes, progress=progress, overwrite=overwrite, storage_options=storage_options
        )
        return
    layout = layout_at(decoder.container.index, at)
    with bar_for("decode", [layout], progress) as bar:
        export(decoder, output, layout, weights, bar.update, storage_options, notes, overwrite)


def restore_steps(
    reader: RunReader,
    output: PathLike,
    steps: str | None,
    exclude_steps: str | None,
    *,
    provenance: bool,
    overwrite: bool,
    engine: EngineChoice,
    progress: bool,
    storage_options: Options,
) -> list[int]:
    """Write stored steps as a run; arguments are those of `Run.restore`."""
    decoder = reader.decoder
    chosen = choose_steps(decoder, steps, exclude_steps)
    index = decoder.container.index
    layouts = [index.layout_of(reader.steps.index(step) + 1) for step in chosen]
    notes = {PROVENANCE: as_bytes(note_of_restored(reader.container, chosen))} if provenance else {}
    with bar_for("restore", layouts, progress) as bar:
        restore(reader, output, chosen, engine, bar.update, storage_options, overwrite, notes)
    return chosen


def save_adapters_of(
    run: TrustedRun,
    output: PathLike,
    steps: float | Sequence[float],
    *,
    tier: str,
    rank: int | None,
    modules_to_save: bool,
    embeddings: bool,
    overwrite: bool,
    progress: bool,
    storage_options: Options,
) -> Adapter:
    """Write adapters of some steps; arguments are those of `Run.save_adapter`."""
    from .adapter import adapter_tiers, save_adapters

    reader = run._reader
    reader.check_open()
    alone = not isinstance(steps, Sequence)
    found = adapter_tiers(reader.container, list(steps) if isinstance(steps, Sequence) else [steps], tier)
    if len(set(found)) != len(found):
        raise InvalidArgument("a step is given twice; an adapter of each is written once")
    places: dict[StepTier, PathLike] = (
        {found[0]: output} if alone else {at: join_path(os.fspath(output), f"step-{at.step:.17g}") for at in found}
    )
    notes = {
        at: note(reader.container, at.step, at.tier, "line", *run._about(at.step, at.tier, "line")) for at in found
    }
    return save_adapters(
        reader, places, notes, rank=rank, whole=modules_to_save, embeddings=embeddings, overwrite=overwrite,
        progress=progress, storage_options=storage_options,
    )  # fmt: skip
