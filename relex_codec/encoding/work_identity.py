"""What results of units are made of and with, so that those of another run, or of other options, are never mixed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from relex_codec._version import __version__
from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.opening import directory_of
from relex_codec.core.digests import digest
from relex_codec.core.filenames import file_allowed
from relex_codec.errors import InvalidArgument
from relex_codec.storage.fingerprints import Fingerprint, difference, fingerprint
from relex_codec.storage.hub.paths import is_hub
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.urls import Options, is_url, local_path, options_for, without_secrets

FORMAT: Final = 1
"""Goes up when results of one version are of no use to the next."""
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".metadata", ".index.json")


@dataclass(frozen=True)
class Identity:
    """What results are made of and with.

    Attributes:
        options: what was asked for, as far as results depend on it, by the names that users know.
        inputs: by what they are called in messages (``base``, ``step 10``), fingerprints of their files, and a digest
            of the names, dtypes and shapes of their tensors.
    """

    options: Mapping[str, Any]
    inputs: Mapping[str, Fingerprint]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "format": FORMAT,
            "version": __version__,
            "options": dict(self.options),
            "inputs": {name: dict(found) for name, found in self.inputs.items()},
        }

    def with_option(self, name: str, value: Any) -> Identity:
        """Return it with one more option."""
        return Identity({**self.options, name: value}, self.inputs)

    def refuse_other(self, before: dict[str, Any], where: str, remedy: str) -> None:
        """Compare it with that of results.

        Args:
            before: the document of these.
            where: they are, for messages.
            remedy: what to do.

        Raises:
            InvalidArgument: something has changed; the message names it.
        """
        now = json.loads(json.dumps(self.document()))
        if before.get("format") != FORMAT or before.get("version") != __version__:
            raise InvalidArgument(
                f"{where} was begun by relex-codec {before.get('version')}, this is {__version__}: {remedy}"
            )
        options, old = now["options"], before["options"]
        for name in sorted(options.keys() | old.keys()):
            if options.get(name) != old.get(name):
                raise InvalidArgument(
                    f"{where} was begun with {name} {_spelled(old.get(name))}, now it is "
                    f"{_spelled(options.get(name))}: {remedy}"
                )
        inputs, known = now["inputs"], before["inputs"]
        for name in [*known, *(name for name in inputs if name not in known)]:
            if name not in inputs or name not in known:
                what = "is no longer part of the run" if name in known else "is new in the run"
                raise InvalidArgument(f"{name} {what} since {where} was begun: {remedy}")
            if changed := difference(known[name], inputs[name]):
                raise InvalidArgument(f"{name} changed since {where} was begun: {changed}: {remedy}")


def _spelled(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def fingerprint_of(path: str, reader: TensorReader, storage_options: Options) -> Fingerprint:
    """Return the fingerprint of a checkpoint: its files, and its table of tensors.

    Args:
        path: it is known by.
        reader: it is read by.
    """
    if is_hub(path):  # a branch may move: its commit is in the table
        files: Fingerprint = {pinned_to_commit(path, storage_options): [0, ""]}
    else:
        files = fingerprint(directory_of(path), options_for(path, storage_options), _counts)
    table = sorted((name, info.dtype, list(info.shape), info.shard) for name, info in reader.tensors.items())
    return files | {"the header": [0, digest(json.dumps(table).encode()).hex()]}


def _counts(name: str) -> bool:
    return name.endswith(_WEIGHTS) or file_allowed(name)


def identity_of(
    found: Sequence[tuple[int, str]],
    checkpoint: Callable[[int], TensorReader],
    base: str,
    base_reader: TensorReader,
    options: Mapping[str, Any],
    storage_options: Options,
) -> Identity:
    """Return what the results of encoding checkpoints are made of and with.

    Args:
        found: steps and paths.
        checkpoint: returns that of a step, by its number from 0 on.
        base: path of it.
    """
    inputs = {"base": _of_base(base, base_reader, storage_options)}
    for number, (step, path) in enumerate(found):
        inputs[f"step {step}"] = fingerprint_of(path, checkpoint(number), storage_options)
    return Identity(options, inputs)


def identity_of_journal(
    place: str,
    steps: Sequence[int],
    base: str,
    base_reader: TensorReader,
    options: Mapping[str, Any],
    storage_options: Options,
) -> Identity:
    """Return what the results of encoding a journal, or a stream of deltas, are made of and with.

    Args:
        place: its directory.
        steps: those that are encoded.
    """
    inputs = {"base": _of_base(base, base_reader, storage_options)}
    if is_url(place):
        inputs[without_secrets(place)] = fingerprint(place, options_for(place, storage_options))
        return Identity({**options, "--steps": list(steps)}, inputs)
    for folder, _, _ in sorted(os.walk(local_path(place))):
        if files := fingerprint(folder, wanted=lambda name: not name.startswith(".")):
            inputs[folder] = files
    return Identity({**options, "--steps": list(steps)}, inputs)


def _of_base(base: str, reader: TensorReader, storage_options: Options) -> Fingerprint:
    if is_hub(base):  # the commit is in its name
        return {base: [0, ""]}
    return fingerprint_of(base, reader, storage_options)
