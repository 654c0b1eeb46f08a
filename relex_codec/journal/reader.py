"""Opening a journal: which steps are committed, what there is of each tensor, and the differences of a chunk."""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final, NamedTuple

import numpy as np

from relex_codec.checkpoints.base_model import ExpectedTensor
from relex_codec.checkpoints.base_uri import place_of_base
from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.checkpoints.naming import PLACEHOLDER
from relex_codec.core.digests import DIGEST, Digests
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, Corrupt, RelexError, Truncated
from relex_codec.format.constants import PIECE
from relex_codec.storage.explain import read_error
from relex_codec.storage.open import open_source
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, local_path, options_for, without_secrets

from .boxes import Shape, tile
from .format import (
    COMMIT,
    FORMAT,
    MARKER,
    MARKER_LIMIT,
    Commit,
    Opening,
    Part,
    file_name,
    parse_commits,
    parse_marker,
    parse_name,
    parse_opening,
)

DELTA_FOLDER: Final = re.compile(r"weight_v([0-9]{6,15})")
"""Directory of a version of weights, as slime writes it."""


def is_journal(path: PathLike, options: Options = None) -> bool:
    """Tell whether a path or URL is the directory of a journal: whether its marker file is there.

    A URL that cannot be one by its name is not asked for: ``NAME.relex``, or one with ``{step}`` in it. What goes wrong
    with the request is for those to tell who take the path for something else.
    """
    if not is_url(path):
        return os.path.isfile(os.path.join(local_path(path), MARKER))
    name = without_secrets(path)
    if PLACEHOLDER in name or name.lower().endswith((".relex", ".safetensors")):
        return False
    try:
        with open_source(join_path(path, MARKER), options_for(path, options), error=CheckpointError) as source:
            return source.size <= MARKER_LIMIT and FORMAT.encode() in source.read(0, source.size)
    except RelexError:
        return False


def is_delta_stream(path: PathLike) -> bool:
    """Tell whether a path is a local directory of slime's disk deltas (deltas.py)."""
    if is_url(path):
        return False
    try:
        return any(DELTA_FOLDER.fullmatch(name) for name in os.listdir(local_path(path)))
    except OSError:
        return False


@dataclass(frozen=True)
class RankFiles:
    """The two files of a rank.

    Attributes:
        steps, data: their paths.
        opening: what the first begins with.
        commits: its records.
        size: bytes of the second.
        tail: bytes of both that belong to no committed step.
    """

    steps: str
    data: str
    opening: Opening
    commits: list[Commit]
    size: int
    tail: int
    sections: list[int] = field(repr=False)


class Place(NamedTuple):
    """A part of a tensor: which rank has it, and which of the rank's parts it is."""

    rank: int
    number: int
    part: Part


@dataclass(frozen=True)
class Generation:
    """The files that one recorder wrote.

    Attributes:
        after: the step that its first one follows; None: the base.
        ranks: one for each rank.
        steps: those that all ranks have committed.
        places: where the parts of each tensor are.
    """

    number: int
    after: int | None
    ranks: list[RankFiles]
    steps: list[int]
    places: Mapping[str, list[Place]]


class RecordedStep(NamedTuple):
    """A step of a journal.

    Attributes:
        number: which step of its generation it is.
    """

    step: int
    generation: Generation
    number: int


class Journal:
    """An opened journal: its tables, none of its differences.

    Args:
        path: of its directory.
        origin: the URL that it was fetched from, if it was.

    Attributes:
        path: as above.
        shown: where it is, for messages: the path, or its URL.
        base_uri: how it refers to its base, None: it does not say.
        generations: those that have committed steps.
        steps: all that can be read, in order.
        tensors: what there is of each step.
        expected: what the base must have, with digests, for the tensors that begin there.
        unfinished: bytes of steps that were not committed.
        left_behind: steps that were recorded again from an earlier one on.

    Raises:
        CheckpointError: there is no journal, or it cannot be read.
        Corrupt, Truncated, Unsupported: it is damaged, or of a newer version.
    """

    def __init__(self, path: PathLike, origin: PathLike | None = None) -> None:
        self.path = os.path.abspath(local_path(path))
        self._origin = origin
        self.shown = self.path if origin is None else without_secrets(origin)
        marker = os.path.join(self.path, MARKER)
        self.base_uri: str | None = parse_marker(_read(marker, MARKER_LIMIT + 1), marker)["base"]
        every = self._generations()
        self.unfinished = sum(rank.tail for generation in every for rank in generation.ranks)
        self.generations: list[Generation] = []
        self.left_behind: list[int] = []
        self.steps: list[RecordedStep] = []
        for generation in every:
            if generation.steps:
                self._follow(generation)
        self.tensors: dict[str, TensorInfo] = {}
        self.expected: list[ExpectedTensor] = []
        if self.generations:
            self._compare()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the steps."""
        return [recorded.step for recorded in self.steps]

    def base_place(self) -> str | None:
        """Return the path or URL of the base that the journal refers to."""
        if self.base_uri is None:
            return None
        return place_of_base(self.base_uri, join_path(self.path if self._origin is None else self._origin, MARKER))

    def size(self) -> int:
        """Return the bytes of all files of the journal."""
        with os.scandir(self.path) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())

    def _generations(self) -> list[Generation]:
        names: dict[int, set[int]] = {}
        try:
            found = sorted(os.listdir(self.path))
        except OSError as e:
            raise read_error(self.path, e, CheckpointError) from None
        for number, rank, kind in filter(None, map(parse_name, found)):
            if kind == "steps":
                names.setdefault(number, set()).add(rank)
        return [self._generation(number, ranks) for number, ranks in sorted(names.items())]

    def _generation(self, number: int, ranks: set[int]) -> Generation:
        files = [self._rank(number, rank) for rank in sorted(ranks)]
        heads = [one.opening.head for one in files]
        where = f"generation {number} of {self.path}"
        for rank, head in zip(sorted(ranks), heads, strict=True):
            if (head.generation, head.rank) != (number, rank):
                raise Corrupt(f"{where}: the files of rank {rank} are those of another one")
            if (head.world, head.after) != (heads[0].world, heads[0].after):
                raise Corrupt(f"{where}: its ranks disagree about how many they are, or which step they follow")
        missing = set(range(heads[0].world)) - ranks if heads[0].world <= len(ranks) + 1000 else {-1}
        if len(ranks) != heads[0].world or missing:
            if any(one.commits for one in files):
                raise Corrupt(f"{where} has the files of {len(ranks)} ranks, expected {heads[0].world}")
            return Generation(number, heads[0].after, files, [], {})
        rows = zip(*([commit.step for commit in one.commits] for one in files), strict=False)
        steps = [row[0] for row in takewhile(lambda row: len(set(row)) == 1, rows)]
        places: dict[str, list[Place]] = {}
        for rank, head in enumerate(heads):
            for place, part in enumerate(head.parts):
                places.setdefault(part.name, []).append(Place(rank, place, part))
        for name, of_tensor in places.items():
            self._check_parts(name, [place.part for place in of_tensor], where)
        self._check_digests(files, places, where)
        return Generation(number, heads[0].after, files, steps, places)

    def _rank(self, generation: int, rank: int) -> RankFiles:
        steps, data = (os.path.join(self.path, file_name(generation, rank, kind)) for kind in ("steps", "data"))
        raw = _read(steps)
        opening = parse_opening(raw, steps)
        size = _size(data)
        if size < opening.digests:
            raise Truncated(f"{data} has {size} bytes, its digests {opening.digests}")
        commits = parse_commits(raw, opening, size, steps)
        end = commits[-1].end if commits else opening.digests
        tail = size - end + len(raw) - opening.length - len(commits) * COMMIT.size
        return RankFiles(steps, data, opening, commits, size, tail, opening.head.sections())

    @staticmethod
    def _check_parts(name: str, parts: list[Part], where: str) -> None:
        one = parts[0]
        if any((p.dtype, p.box.shape, p.base) != (one.dtype, one.box.shape, one.base) for p in parts):
            raise Corrupt(f"{where}: its ranks disagree about tensor {quote(name)}")
        if not tile([part.box for part in parts], one.box.shape):
            raise Corrupt(f"{where}: its ranks do not have each element of tensor {quote(name)} once")

    @staticmethod
    def _check_digests(files: list[RankFiles], places: Mapping[str, list[Place]], where: str) -> None:
        """Check how many digests there are: all of them first, so that nothing is listed that no file has."""
        tensors = [of_tensor[0].part for of_tensor in places.values()] if files[0].opening.head.after is None else []
        total = sum(-(-math.prod(part.box.shape) // PIECE) for part in tensors if part.base is not None)
        if sum(one.opening.digests for one in files) != DIGEST * total or any(
            one.opening.digests != one.opening.head.digests() for one in files
        ):
            raise Corrupt(f"{where}: its digests are not those of the pieces of its tensors ({total})")

    def _follow(self, generation: Generation) -> None:
        """Add a generation: what comes after the step that it follows was left behind."""
        keep = [one for one in self.steps if generation.after is not None and one.step <= generation.after]
        if generation.after is not None and (not keep or keep[-1].step != generation.after):
            raise Corrupt(
                f"generation {generation.number} of {self.path} follows step {generation.after}, which is not there"
            )
        self.left_behind += [one.step for one in self.steps[len(keep) :]]
        self.steps = keep + [RecordedStep(step, generation, i) for i, step in enumerate(generation.steps)]
        self.generations = [one for one in self.generations if any(kept.generation is one for kept in keep)]
        self.generations.append(generation)

    def _compare(self) -> None:
        """Take the tensors from the first generation, and check that all others have the same."""
        first, *others = self.generations
        digests = self._digests(first)
        for name, places in first.places.items():
            part = places[0].part
            self.tensors[name] = TensorInfo(name, part.dtype, part.box.shape)
            if part.base is not None:
                self.expected.append(ExpectedTensor(name, part.base, part.box.shape, digests[name]))
        for other in others:
            if _described(other) != _described(first):
                raise Corrupt(f"generation {other.number} of {self.path} has other tensors than the first one")

    def _digests(self, generation: Generation) -> dict[str, Digests]:
        """Gather the digests of the base from the ranks that have them."""
        found: dict[str, Digests] = {}
        for name, places in generation.places.items():
            size = math.prod(places[0].part.box.shape)
            found[name] = np.zeros((-(-size // PIECE), DIGEST), np.uint8)
        for rank in generation.ranks:
            raw, at = self._rank_digests(rank), 0
            for part in rank.opening.head.parts:
                pieces = part.pieces
                end = at + DIGEST * len(pieces)
                found[part.name][pieces] = np.frombuffer(raw[at:end], np.uint8).reshape(-1, DIGEST)
                at = end
        return found

    def _rank_digests(self, rank: RankFiles) -> bytes:
        raw = _read(rank.data, rank.opening.digests)
        if zlib.crc32(raw) != rank.opening.digests_crc:
            raise Corrupt(f"{rank.data}: the checksum of its digests is wrong")
        return raw


def _described(generation: Generation) -> dict[str, tuple[str, Shape, str | None]]:
    parts = (places[0].part for places in generation.places.values())
    return {part.name: (part.dtype, part.box.shape, part.base) for part in parts}


def _read(path: str, limit: int | None = None) -> bytes:
    """Return the content of a file, or its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read() if limit is None else file.read(limit)
    except OSError as e:
        raise read_error(path, e, CheckpointError) from None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as e:
        raise read_error(path, e, CheckpointError) from None


def open_journal(path: PathLike, origin: PathLike | None = None) -> Journal:
    """Open a journal that has a step; arguments as of `Journal`.

    Raises:
        CheckpointError: it has none, or there is no journal.
        Corrupt, Truncated, Unsupported: as `Journal`.
    """
    journal = Journal(path, origin)
    if not journal.steps:
        raise CheckpointError(f"journal {journal.shown} has no committed step yet; record one first")
    return journal
