"""The files of a step that are no weights: configuration, tokenizer, templates, code (FORMAT.md section 10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from relex_codec.core.digests import digest
from relex_codec.core.text import quote
from relex_codec.decoding.stored_pieces import embedded_file
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import BaseMismatch
from relex_codec.format.manifest import FileEntry
from relex_codec.format.step_layout import StepLayout


class SideFiles:
    """The files of a layout that are no weights: stored in the file, or in the base with their digests checked.

    The base is opened when something is asked for that is only there, not before: where it is not reached, the weights
    that do not need it can still be read. Documents without digests (a model card, a licence) may have changed in the
    base since, or be gone: they are what they are there.
    """

    def __init__(self, decoder: TensorDecoder, layout: StepLayout) -> None:
        self._container, self._base, self._files = decoder.container, decoder.base, layout.files

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each by name, without reading them."""
        changing = [name for name, (_, file) in self._files.items() if _is_loose(file)]
        there = self._base.documents().file_sizes() if changing else {}
        return {
            name: there[name] if _is_loose(file) else file.length
            for name, (_, file) in self._files.items()
            if not _is_loose(file) or name in there
        }

    def size(self, name: str) -> int | None:
        """Return the bytes of one, or None if there is none of that name."""
        if name not in self._files:
            return None
        file = self._files[name][1]
        return self._base.documents().file_sizes().get(name) if _is_loose(file) else file.length

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes `start` to `end` (default: all) of one that exists."""
        return b"".join(self.stream(name, start, end))

    def stream(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (default: all) of one that exists; a stored one by the piece.

        Raises:
            BaseMismatch: the base has another file of that name, or none.
        """
        number, file = self._files[name]
        if file.stored:
            yield from embedded_file(self._container, number, start, end)
        else:
            (content,) = self._of_base([file])
            yield content[start:end]

    def read_all(self) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Yield name and content of each; those of a remote base are read at the same time."""
        outside: list[FileEntry] = []
        for name, (number, file) in self._files.items():
            if file.stored:
                yield name, embedded_file(self._container, number)
            else:
                outside.append(file)
        if any(map(_is_loose, outside)):
            there = self._base.documents().side_files
            outside = [file for file in outside if not _is_loose(file) or file.name in there]
        for file, content in zip(outside, self._of_base(outside), strict=True):
            yield file.name, [content]

    def _of_base(self, files: list[FileEntry]) -> Iterator[bytes]:
        """Yield the content of each of some files, which is only in the base, checked."""
        if not files:
            return
        base = self._base.documents() if any(map(_is_loose, files)) else self._base.files()
        for file in files:
            if file.name not in base.side_files:
                raise BaseMismatch(f"base {base.path} has no {quote(file.name)}, which the run has; pass --base")
        for file, content in zip(files, base.read_files([file.name for file in files]), strict=True):
            if file.digest is not None and digest(content).hex() != file.digest:
                raise BaseMismatch(
                    f"{quote(file.name)} of base {base.path} is not the one that the run has; pass --base with the "
                    "base that the run was trained from"
                )
            yield content


def _is_loose(file: FileEntry) -> bool:
    """Tell whether a file is whatever the base has under its name."""
    return not file.stored and file.digest is None
