"""The file of scores beside a run's file: where it is, and adding to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relex_codec.errors import InvalidArgument
from relex_codec.storage.condition import Condition
from relex_codec.storage.outputs import output_file
from relex_codec.storage.urls import is_url
from relex_codec.trust.scores import with_scores


def place_of_scores(path: str) -> Path | None:
    """Return where the scores of a file lie: ``run.scores.json`` beside ``run.relex``; None where there can be none.

    Examples:
        >>> place_of_scores("runs/x.relex"), place_of_scores("s3://bucket/x.relex")
        (PosixPath('runs/x.scores.json'), None)
    """
    if is_url(path) or not path.endswith(".relex"):
        return None
    return Path(path.removesuffix(".relex") + ".scores.json")


def read_scores(place: Path) -> bytes | None:
    """Return a file of scores; None where there is none.

    Raises:
        InvalidArgument: it cannot be read.
    """
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidArgument(f"cannot read {place}: {error.strerror}") from None


def keep_scores(path: str, rows: Iterable[Mapping[str, Any]], metric: str = "") -> Path:
    """Add scores to the file beside a run's file, and return where that is.

    Args:
        path: of the run's file.
        rows, metric: as `trust.scores.with_scores`.

    Raises:
        InvalidArgument: the run's file is no local one called ``NAME.relex``, or what lies there cannot be added to.
    """
    place = checked_place(path)
    content = with_scores(read_scores(place), rows, metric, str(place))
    with output_file(place, condition=Condition(absent=False)) as out:
        out.write(content)
    return place


def checked_place(path: str) -> Path:
    """Return where scores of a file are kept.

    Raises:
        InvalidArgument: it is no local file called ``NAME.relex``.
    """
    place = place_of_scores(path)
    if place is None:
        raise InvalidArgument(f"scores are kept beside local files called NAME.relex, not beside {path}")
    return place
