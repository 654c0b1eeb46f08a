"""Parts of a file: what one of several processes or machines has encoded, as one file, and joining them.

A part is a file of `unit_files`: its body is the results of its units, one after another, and its document says what
the whole is. Parts say what they were made of and with, so that those of other runs or options are noticed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import IO, Final, cast

from relex_codec.checkpoints.base_uri import uri_of_base
from relex_codec.core.steps import spell_steps
from relex_codec.engines.driver import Done
from relex_codec.engines.unit_files import COPY, OpenFiles, UnitFile, UnitWriter
from relex_codec.errors import Corrupt, InvalidArgument
from relex_codec.format.manifest_parser import parse
from relex_codec.format.writer import FileWriter
from relex_codec.storage.leftovers import ScratchDirectory
from relex_codec.storage.open import open_source
from relex_codec.storage.urls import Options, PathLike, is_url, local_path, options_for, without_secrets

from .joining import Outline
from .output import condition_of
from .results import Results
from .work_identity import Identity

KIND: Final = "relex part"
_SHARD: Final = re.compile(r"(\d+)/(\d+)")
_TASKS: Final = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("RANK", "WORLD_SIZE", None),
)
"""Variables that say which of how many processes this is, and what the numbers begin at."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of the work is done.

    Attributes:
        number: from 1 on.
        count: of all.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Shard:
        """Read ``I/N``, or ``auto``: what a job array of Slurm, or a launcher of processes, says of this one.

        Raises:
            InvalidArgument: it is neither, or nothing says.

        Examples:
            >>> Shard.parse("2/8")
            Shard(number=2, count=8)
            >>> Shard.parse("auto", {"RANK": "0", "WORLD_SIZE": "4"})
            Shard(number=1, count=4)
            >>> ids = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"}
            >>> Shard.parse("auto", ids)
            Shard(number=3, count=4)
        """
        if text == "auto":
            return cls._of(environment)
        match = _SHARD.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InvalidArgument(f"shard is {text!r}, expected I/N such as 1/8 (the first of eight), or auto")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def _of(cls, environment: Mapping[str, str]) -> Shard:
        for number, count, first in _TASKS:
            if number not in environment:
                continue
            try:
                found = cls(
                    int(environment[number]) - (int(environment.get(first, "0")) if first else 0) + 1,
                    int(environment[count]),
                )
            except (KeyError, ValueError):
                raise InvalidArgument(
                    f"{number} is set, but not {count}, or not to numbers: give --shard I/N"
                ) from None
            if first and (step := environment.get("SLURM_ARRAY_TASK_STEP", "1")) != "1":
                raise InvalidArgument(f"the job array counts in steps of {step}: give --shard I/N")
            if not 1 <= found.number <= found.count:
                raise InvalidArgument(
                    f"{number} and {count} say part {found.number} of {found.count}: number a job array without gaps, "
                    "or give --shard I/N"
                )
            return found
        names = ", ".join(f"{number} and {count}" for number, count, _ in _TASKS)
        raise InvalidArgument(f"shard is auto, but none of {names} is set: give --shard I/N")

    def name(self, output: PathLike) -> str:
        """Return what the part of a file is called.

        Examples:
            >>> Shard(2, 8).name("run.relex")
            'run.relex.part-2-of-8'
        """
        return f"{os.fspath(output)}.part-{self.number}-of-{self.count}"


def write_part(
    writer: FileWriter, outline: Outline, identity: Identity, base: str, given_uri: bool, shard: Shard,
    keys: Sequence[str], done: Sequence[Done],
) -> int:  # fmt: skip
    """Write a part; return its size.

    Args:
        base: reference to the base, from which a file beside another directory makes its own.
        given_uri: whether the user said where the file shall say that its base is.
        keys: of all units, in order, those of other parts included.
        done: units of this part.
    """
    out = UnitWriter(cast(IO[bytes], writer))
    units = []
    for one in sorted(done, key=lambda done: done.number):
        at = out.at
        with open(one.path, "rb") as file:
            while data := file.read(COPY):
                out.write(data)
        units.append([one.number, at, out.at - at])
    out.document = {
        "kind": KIND,
        "shard": [shard.number, shard.count],
        "identity": identity.document(),
        "base": base,
        "given_uri": given_uri,
        "steps": outline.steps,
        "manifest": out.data(outline.manifest.to_bytes()),
        "targets": outline.targets,
        "contents": [out.data(content) for content in outline.contents],
        "shape": None if outline.shape is None else asdict(outline.shape),
        "keys": list(keys),
        "units": units,
    }
    out.finish()
    return writer.tell()


class _Part:
    """A part that is open."""

    def __init__(self, shown: str, path: str, files: OpenFiles) -> None:
        self.shown = shown
        try:
            self.file = UnitFile(path, files)
        except (Corrupt, ValueError, OSError):
            raise InvalidArgument(f"{shown} is no part of a file, or was cut off: encode that part again") from None
        if self.file.document.get("kind") != KIND:
            raise InvalidArgument(f"{shown} is no part of a file: give what `relex-codec encode --shard` wrote")
        self.document = self.file.document
        self.number, self.count = self.document["shard"]

    def done(self) -> Iterator[tuple[int, UnitFile]]:
        for number, at, size in self.document["units"]:
            yield number, self.file.within(at, size)


def merge(
    parts: Sequence[PathLike], output: PathLike, *, overwrite: bool = False, storage_options: Options = None
) -> int:
    """Join the parts of a file that `encode` wrote with `shard`.

    The file is byte for byte the one that `encode` writes without.

    Args:
        parts: paths or URLs, all of one encoding, in any order.
        output: path or fsspec URL of the file, ``NAME.relex``; it appears when it is complete.
        overwrite: replace what is at `output`; otherwise an existing file is refused.
        storage_options: for fsspec, for all URLs, or by protocol.

    Returns:
        The size of the file in bytes.

    Raises:
        InvalidArgument: parts are missing, given twice, of different runs or options, or no parts; the output exists
            or cannot be written.
        Corrupt: a part is damaged.

    Examples:
        >>> for shard in ("1/2", "2/2"):  # on two machines
        ...     size = relex_codec.encode("ckpts/", "big.relex", base="base/", shard=shard)
        >>> size = relex_codec.merge(["big.relex.part-1-of-2", "big.relex.part-2-of-2"], "big.relex")
        >>> relex_codec.open("big.relex").steps
        [10, 20, 30, 40, 50]
    """
    condition = condition_of(output, overwrite=overwrite, base=None, storage_options=storage_options)
    writer = FileWriter(output, storage_options, condition)
    with ExitStack() as stack:
        files = stack.enter_context(closing(OpenFiles()))
        stack.enter_context(writer)
        opened = [_Part(without_secrets(part), _local(stack, part, storage_options), files) for part in parts]
        _check(opened)
        for part in opened:
            part.file.check()
        first = opened[0]
        outline = _outline(first, output)
        results = Results(files)
        for part in opened:
            for number, unit in part.done():
                results.take(number, unit)
        return outline.write(results, writer).size


def _local(stack: ExitStack, part: PathLike, storage_options: Options) -> str:
    """Return the path of a part on this machine."""
    if not is_url(part):
        path = local_path(part)
        if not os.path.isfile(path):
            raise InvalidArgument(f"part {path} does not exist")
        return path
    folder = stack.enter_context(ScratchDirectory())
    path = os.path.join(folder.path, "part")
    with open_source(part, options_for(part, storage_options)) as source, open(path, "wb") as file:
        for at in range(0, source.size, 1 << 24):
            file.write(source.read(at, min(source.size, at + (1 << 24))))
    return path


def _check(parts: Sequence[_Part]) -> None:
    """Check that parts are all of one encoding, and each is there once."""
    if not parts:
        raise InvalidArgument("no parts: give those that `relex-codec encode --shard` wrote")
    first = parts[0]
    for part in parts[1:]:
        if part.count != first.count:
            raise InvalidArgument(
                f"{part.shown} is one of {part.count} parts, {first.shown} one of {first.count}: give those of one "
                "encoding"
            )
        known = part.document["identity"]
        Identity(known["options"], known["inputs"]).refuse_other(
            first.document["identity"], first.shown, f"{part.shown} is of another encoding; encode that part again"
        )
        if part.document["keys"] != first.document["keys"]:
            raise InvalidArgument(f"{part.shown} was cut into other units than {first.shown}: encode that part again")
    by_number: dict[int, _Part] = {}
    for part in parts:
        if part.number in by_number:
            raise InvalidArgument(
                f"{part.shown} is part {part.number} of {part.count}, and so is {by_number[part.number].shown}: give "
                "each once"
            )
        by_number[part.number] = part
    numbers = list(range(1, first.count + 1))
    missing = [number for number in numbers if number not in by_number]
    if missing:
        raise InvalidArgument(
            f"part {spell_steps(missing, numbers)} of {first.count} is missing: encode it with --shard, or give it too"
        )
    there = {number for part in parts for number, _, _ in part.document["units"]}
    if lacking := set(range(len(first.document["keys"]))) - there:
        raise Corrupt(f"{first.document['keys'][min(lacking)]} is in none of the parts: encode them again")


def _outline(part: _Part, output: PathLike) -> Outline:
    """Return what the whole file says beside what its units have found out."""
    document = part.document
    shape = None
    if document["shape"] is not None:
        from relex_codec.exact.segments import SegmentShape  # numba is only needed here

        shape = SegmentShape(**document["shape"])
    manifest = parse(part.file.data(document["manifest"]), document["steps"])
    if not document["given_uri"]:
        manifest = replace(manifest, base_uri=uri_of_base(document["base"], output))
    contents = [part.file.data(place) for place in document["contents"]]
    return Outline(document["steps"], manifest, document["targets"], contents, shape)
