"""What comparing a file with the checkpoints that it was made from found: as data, and as a sentence to act on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, NamedTuple

from relex_codec.checkpoints.left_out import RestOfRun
from relex_codec.core.left_out import describe
from relex_codec.core.sizes import spell_bytes
from relex_codec.core.steps import name_steps
from relex_codec.core.text import on_one_line, quote

SHOWN: Final = 20
"""Steps of which differences are told."""
NAMED: Final = 3
"""Tensors and files of a step that are told."""
DIGITS: Final = 16
"""Of a SHA-256 that is told."""


class Difference(NamedTuple):
    """A tensor or file that a checkpoint has otherwise than the file.

    Attributes:
        step: of the checkpoint.
        name: of the tensor, or of the file beside the weights.
        what: how it differs.
        is_tensor: whether it is a tensor.

    Examples:
        >>> import shutil
        >>> copied = shutil.copy("ckpts/global_step_50/model.safetensors", "ckpts/global_step_40/")
        >>> found = run.verify_against("ckpts/", steps="40").differences[0]
        >>> found.step, found.name, found.is_tensor
        (40, 'model.embed_tokens.weight', True)
        >>> found.what
        'has 244 of 768 elements with other bits'
    """

    step: int
    name: str
    what: str
    is_tensor: bool = True


class BaseFile(NamedTuple):
    """A file of weights of the base that decoding needs.

    Attributes:
        sha256: hex digits.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing a file with a run found.

    Attributes:
        file: its path.
        run: path of the run.
        steps: that were compared.
        bytes: of weights that were compared.
        differences: in the order of the steps.
        only_in_run: steps that the file lacks.
        only_in_file: steps that the run lacks, which were not compared.
        unreadable: why checkpoints of the run could not be read, a line each.
        rest: what else the run's directory holds.
        base: where the base is that decoding needs; None: the file embeds it, or needs none.
        base_files: of that base.

    Examples:
        >>> found = run.verify_against("ckpts/", steps=":40")
        >>> found.steps, found.differences, found.ok
        ([10, 20, 30, 40], [], True)
    """

    file: str
    run: str
    steps: list[int]
    bytes: int
    differences: list[Difference]
    only_in_run: list[int]
    only_in_file: list[int]
    unreadable: list[str]
    rest: RestOfRun
    base: str | None
    base_files: list[BaseFile] = field(default_factory=list)

    @property
    def equal_steps(self) -> int:
        """How many of `steps` have no difference.

        Examples:
            >>> run.verify_against("ckpts/", steps="10,20").equal_steps
            2
        """
        return len(self.steps) - len({difference.step for difference in self.differences})

    @property
    def ok(self) -> bool:
        """Whether the file has every step of the run, and nothing differs.

        Examples:
            >>> run.verify_against("ckpts/").ok  # there is a step 50
            False
            >>> run.verify_against("ckpts/", exclude_steps="50").ok
            True
        """
        return bool(self.steps) and not (self.differences or self.only_in_run or self.unreadable)

    def sentence(self) -> str:
        """Return all of it as one sentence.

        Examples:
            >>> run.verify_against("ckpts/").sentence()
            '4 of 4 steps equal (43.9 kB); 1 step of the run NOT in the file; ...; needed to decode: the base ...'
        """
        with_weights = len(self.steps) - len({one.step for one in self.differences if one.is_tensor})
        weights = f", {with_weights} in their weights" if with_weights > self.equal_steps else ""
        parts = [f"{self.equal_steps} of {len(self.steps)} steps equal{weights} ({spell_bytes(self.bytes)})"]
        if self.only_in_run:
            parts.append(f"{_counted(self.only_in_run)} of the run NOT in the file")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} of the run could not be read")
        if self.only_in_file:
            parts.append(f"{_counted(self.only_in_file)} of the file not in the run")
        told = describe(self.rest.rows, len(self.steps))
        if not self.rest.complete:
            told += (", " if told else "") + "and what lies in directories that could not be listed"
        if told:
            parts.append(f"not in the file: {told}")
        parts.append(f"needed to decode: {self._needed()}")
        return "; ".join(parts)

    def lines(self) -> Iterator[str]:
        """Yield what differs, a line for each step: 20 lines at most, and then how many more there are.

        Examples:
            >>> list(run.verify_against("ckpts/").lines())
            ['not in the file: step 50']
        """
        by_step = groupby(self.differences, key=lambda one: one.step)
        found = [
            *(f"step {step}: {_some(list(differences))}" for step, differences in by_step),
            *map(on_one_line, self.unreadable),
        ]
        if self.only_in_run:
            found.append(f"not in the file: {name_steps(self.only_in_run, self.only_in_run)}")
        yield from found[:SHOWN]
        if len(found) > SHOWN:
            yield f"and {len(found) - SHOWN} more (all with --json)"

    def as_document(self) -> dict[str, Any]:
        """Return what ``verify --against --json`` prints.

        Examples:
            >>> found = run.verify_against("ckpts/").as_document()
            >>> found["ok"], found["equal_steps"], found["only_in_run"]
            (False, 4, [50])
        """
        return {
            "file": self.file,
            "run": self.run,
            "ok": self.ok,
            "sentence": self.sentence(),
            "steps": self.steps,
            "equal_steps": self.equal_steps,
            "bytes": self.bytes,
            "differences": [
                {"step": one.step, "tensor" if one.is_tensor else "file": one.name, "what": one.what}
                for one in self.differences
            ],
            "only_in_run": self.only_in_run,
            "only_in_file": self.only_in_file,
            "unreadable": self.unreadable,
            "left_out": [row._asdict() for row in self.rest.rows],
            "left_out_complete": self.rest.complete,
            "base": self.base,
            "base_files": [one._asdict() for one in self.base_files],
        }

    def _needed(self) -> str:
        if self.base is None:
            return "nothing else"
        if not self.base_files:
            return f"the base {self.base}"
        first, *others = self.base_files
        more = f" of {first.name}, and {len(others)} more files" if others else ""
        return f"the base {self.base} (sha256 {first.sha256[:DIGITS]}{more})"


def _some(differences: Sequence[Difference]) -> str:
    told = [
        f"{'tensor' if one.is_tensor else 'file'} {quote(one.name)} {on_one_line(one.what)}"
        for one in differences[:NAMED]
    ]
    more = [f"and {len(differences) - NAMED} more"] if len(differences) > NAMED else []
    return ", ".join([*told, *more])


def _counted(steps: Sequence[int]) -> str:
    return f"{len(steps)} step{'' if len(steps) == 1 else 's'}"
