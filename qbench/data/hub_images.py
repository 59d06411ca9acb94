"""Labelled images of a data set by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qbench.data import hub
from qbench.data.kept import Kept, kept
from qbench.data.options import whole
from qbench.data.text import BadData
from qbench.data.vision import Images, labelled, numbered, plain, readable, stacked

KIND = "hf-images"
OPTIONS = ("config", "split", "image", "label", "images")
IMAGES = 100_000  # of a split


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a row has its picture and its label, and the names of the labels where the data set gives them."""

    image: str
    label: str
    names: tuple[str, ...] = ()


def asked(name: str) -> hub.Asked:
    """What `name` asks for; BadData where that makes no sense. Reads nothing."""
    found = hub.asked(KIND, name, OPTIONS)
    _most(found)
    return found


def images(name: str) -> Images:
    """The labelled images of `owner/name@COMMIT` or a folder, with `?settings`.

    `config` and `split` are the data set's own; `image` and `label` are columns; `images` is how many are read of each
    split. Published splits stay as they are; a missing one is cut from train by the rank of the images' hashes.

    Raises:
        BadData: it cannot be read, or has no labelled pictures where the name points; one line says what to do.
        CannotWrite: what comes from the hub cannot be kept.
    """
    wanted = asked(name)
    if wanted.local:
        return _read(wanted)
    found = kept(wanted.title, lambda: _packed(_read(wanted)))
    arrays = {part: found.arrays[part] for part in ("pixels", "labels", "place")}
    classes = tuple(found.said["classes"].split("\n"))
    return Images(wanted.title, classes=classes, digest=found.said["digest"], detail=found.said["detail"], **arrays)


def _packed(made: Images) -> Kept:
    arrays = {"pixels": made.pixels, "labels": made.labels, "place": made.place}
    return Kept(arrays, {"digest": made.digest, "detail": made.detail, "classes": "\n".join(made.classes)})


def _most(wanted: hub.Asked) -> int:
    sizes = {key: value for key, value in wanted.options.items() if key == "images"}
    return whole(wanted.title, sizes, {"images": (1, 2**32)}).get("images", IMAGES)


def _read(wanted: hub.Asked) -> Images:
    most = _most(wanted)
    splits = {rows.split: rows for rows in hub.published(wanted)}
    places = hub.roles(list(splits))
    pictures: list[Any] = []
    labels: list[Any] = []
    published: list[int] = []
    notes: list[str] = []
    columns: _Columns | None = None
    for split, place in places.items():
        rows = iter(splits[split])
        for where, row in _first(rows, most, f"{wanted.title}: {split}"):
            columns = columns or _columns(wanted, splits[split].features, row)
            pictures.append(plain(row[columns.image], where))
            labels.append(row[columns.label])
            published.append(-1 if place is None else place)
        notes += [f"{split}: the first {most} images"] * (next(rows, None) is not None)
    if columns is None:
        raise BadData(f"{wanted.title}: no rows in {', '.join(places)}")
    numbers, classes = _numbered(wanted, labels, columns.names)
    pixels, sizes_note = stacked(pictures)
    where = np.array(published, dtype=np.int8)
    made = labelled(wanted.title, (pixels, numbers), classes, None if (where < 0).any() else where)
    return replace(made, detail="; ".join(filter(None, [*notes, sizes_note])))


def _first(rows: Iterator[dict[str, Any]], most: int, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """At most so many rows, decoded, each with its place."""
    for number in range(most):
        where = f"{split}, row {number}"
        with readable(where):
            row = next(rows, None)
        if row is None:
            return
        yield where, row


def _columns(wanted: hub.Asked, features: Mapping[str, Any] | None, row: Mapping[str, Any]) -> _Columns:
    """As asked for; else the only column of pictures, and of the others the one that holds labels."""
    pictures = [name for name, value in row.items() if hasattr(value, "convert") and hasattr(value, "mode")]
    named = {name: tuple(found.names) for name, found in (features or {}).items() if hasattr(found, "names")}
    image = wanted.options.get("image") or (pictures[0] if len(pictures) == 1 else "")
    if image not in pictures:
        raise BadData(f"{wanted.title}: which column is the picture? say ?image=NAME; it has {', '.join(row)}")
    label = wanted.options.get("label") or (next(iter(named)) if len(named) == 1 else "label")
    if label not in row or not isinstance(row[label], (int, str)):
        raise BadData(f"{wanted.title}: which column is the label? say ?label=NAME; it has {', '.join(row)}")
    return _Columns(image, label, named.get(label, ()))


def _numbered(
    wanted: hub.Asked, labels: Sequence[Any], names: tuple[str, ...]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as numbers, and what they are called: as published, or words in order, or numbers as they are."""
    if not names and all(isinstance(label, str) for label in labels):
        names = tuple(sorted(set(labels)))
        number = {name: i for i, name in enumerate(names)}
        return np.array([number[label] for label in labels], dtype=np.int64), names
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        strange = next(label for label in labels if not (isinstance(label, int) and label >= 0))
        raise BadData(f"{wanted.title}: label {strange!r}; expected classes: leave out a split without, ?split=train")
    return (np.array(labels, dtype=np.int64), names) if names else numbered(wanted.title, labels)
