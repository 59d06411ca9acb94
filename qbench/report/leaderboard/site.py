"""The leaderboard as files: one page to search, one for each group, model and quantizer, and the rows as data."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from qbench.report import assets, payload, svg
from qbench.report.leaderboard import answers, front, spoken, tables
from qbench.report.leaderboard.answers import Line, Setting
from qbench.report.leaderboard.board import Board
from qbench.report.leaderboard.entries import Entry
from qbench.report.leaderboard.groups import Group
from qbench.report.leaderboard.spoken import NONE
from qbench.results import digest
from qbench.results.files import cannot_write, make_folder

MOST = 200  # rows in a page without a script; the first page has all, and shows them in pages
MARK = "qbench-leaderboard"  # a file that says: this folder is ours to write into
FIRST_MODELS = 6  # of a scope, best first, above all rows
LONGEST = 18  # letters of a name in an address
SHOWN = (
    *("rank_best", "rank_worst", "front", "model", "quantizer", "value", "increase", "bits_per_value", "bytes"),
    *("n", "seeds", "seed_floor", "window_floor", "date", "commit", "provenance", "superseded_by", "submission", "who"),
)


class NotOurs(FileExistsError):
    """The folder holds files that no leaderboard wrote, which a new site would mix with."""


def build(board: Board, out: Path) -> list[Path]:
    """Write the site to `out`: the same board, the same bytes. Pages of an earlier one that are gone are deleted.

    Raises NotOurs where `out` holds something else, CannotWrite where a file cannot be written.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise NotOurs(f"{out} holds other files; name a new folder, or one that an earlier build made")
    pages = contents(board)
    for folder in sorted({(out / name).parent for name in pages}):
        make_folder(folder)
    for path in (out / kind for kind in ("groups", "models", "quantizers")):
        for old in sorted(path.glob("*.html")) if path.is_dir() else ():
            if str(old.relative_to(out)) not in pages:
                old.unlink()
    for name, content in pages.items():
        _write(out / name, content)
    return [out / name for name in pages]


def _write(path: Path, content: bytes) -> None:
    """Without fsync, which takes longer than everything else together: a site can be built again."""
    with cannot_write(path):
        if path.is_symlink():  # or its target would be written
            path.unlink()
        path.write_bytes(content)


def contents(board: Board) -> dict[str, bytes]:
    """Every file of the site by its path."""
    rows, found = board.rows, answers.settings(board.groups)
    made: dict[str, bytes] = {
        "index.html": _index(board, rows, found),
        "corrections.html": _page("corrections", "", title="Corrections", corrections=board.corrections),
        "style.css": (assets.read("page.css") + _asset("board.css")).encode(),
        "rows.csv": tables.as_csv(rows),
        "rows.json": tables.as_json(rows),
        "rows.parquet": tables.as_parquet(rows),
        MARK: b"written by qbench leaderboard build\n",
        ".nojekyll": b"",
    }
    for group, of_group in board.groups.items():
        made[f"groups/{group.id}.html"] = _group(group, of_group)
    for name, own in _grouped(rows, "model").items():
        made[address("model", name)] = _listing("model", name, own, board, _of_model(found, name))
    for name, own in _grouped(rows, "quantizer").items():
        made[address("quantizer", name)] = _listing("quantizer", name, own, board, [])
    return made


def _grouped(rows: Iterable[Entry], kind: str) -> Mapping[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for row in rows:
        found[getattr(row, kind)].append(row)
    return found


def _of_model(found: Iterable[Setting], name: str) -> list[Setting]:
    """What of the settings is about one model."""
    return [
        replace(one, scopes={group: own for group, lines in one.scopes.items() if (own := _own(lines, name))})
        for one in found
        if any(_own(lines, name) for lines in one.scopes.values())
    ]


def _own(lines: Iterable[Line], name: str) -> tuple[Line, ...]:
    return tuple(line for line in lines if line.model == name)


def address(kind: str, name: str) -> str:
    """The page of a model or quantizer: the end of its name, where models of one submission differ, and a digest.

    >>> address("model", "../Ä/x y")
    'models/x-y-8787dd.html'
    """
    word = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    word = word if len(word) <= LONGEST else word[-LONGEST:].partition("-")[2] or word[-LONGEST:]
    return f"{kind}s/{word}-{digest.of(name)[:6]}.html"


def _index(board: Board, rows: Sequence[Entry], settings: Sequence[Setting]) -> bytes:
    script = _asset("board.js")
    return _page(
        "index",
        "",
        title="What few bits cost",
        script=Markup(script),
        script_hash=assets.digest(script),
        settings=[one for one in settings if one.newest],
        models=len({row.model for row in rows}),
        quantizers=len({row.quantizer for row in rows if not row.untouched}),
        groups=list(board.groups.items()),
        submissions=board.submissions,
        labels=sorted({row.label for row in rows}),
        rows=rows,
        data=Markup(payload.text(_data(board, rows))),
    )


def _data(board: Board, rows: Sequence[Entry]) -> Mapping[str, Any]:
    """What the script shows: rows with the number of their group, and where the pages are."""
    place = {group: i for i, group in enumerate(board.groups)}
    lines = [(row, tables.line(row)) for row in rows]
    packed = payload.packed(
        ["group", "measured", "cost", *SHOWN],
        [
            [place[row.group], spoken.value(row), spoken.cost(row), *(found[name] for name in SHOWN)]
            for row, found in lines
        ],
    )
    return {
        "groups": [[group.id, group.title, spoken.unit(group)] for group in board.groups],
        "pages": {
            kind: {name: address(kind, name) for name in dict.fromkeys(getattr(row, kind) for row in rows)}
            for kind in ("model", "quantizer")
        },
        **packed,
    }


def _group(group: Group, rows: Sequence[Entry]) -> bytes:
    models = list(dict.fromkeys(one.model for one in rows if one.ranked and one.bits is not None))
    return _page(
        "group",
        "../",
        title=group.title,
        group=group,
        facts=_facts(group),
        rows=rows[:MOST],
        left=max(len(rows) - MOST, 0),
        chart=Markup(front.draw(group, rows)),
        swatches=Markup(svg.swatches()),
        legend=[(Markup(svg.key(i)), name) for i, name in enumerate(models)],
        summary=front.panel(group, rows).summary if front.front(rows) else "",
    )


def _listing(kind: str, name: str, rows: Sequence[Entry], board: Board, settings: Sequence[Setting]) -> bytes:
    senders = {one.name: one.submission for one in board.submissions}
    return _page(
        "listing",
        "../",
        title=name,
        kind=kind,
        other="quantizer" if kind == "model" else "model",
        groups=_by_group(rows[:MOST]),
        left=max(len(rows) - MOST, 0),
        settings=settings,
        submitted=[(key, senders[key]) for key in dict.fromkeys(row.submission for row in rows)],
    )


def _by_group(rows: Iterable[Entry]) -> Mapping[Group, list[Entry]]:
    found: dict[Group, list[Entry]] = defaultdict(list)
    for row in rows:
        found[row.group].append(row)
    return found


def _page(template: str, root: str, **context: Any) -> bytes:
    text = _template(template).render(root=root, **{"script_hash": "", **context})
    return (text + "\n").encode()


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(address=address, said=spoken, first_models=FIRST_MODELS)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return environment.from_string(_asset("base.html").replace("<!-- body -->", _asset(f"{name}.html")))


def _asset(name: str) -> str:
    return files("qbench.report.leaderboard").joinpath(name).read_text(encoding="utf-8")


def _facts(group: Group) -> Iterable[tuple[str, str]]:
    """The rules of a group: rows that differ in any of them are not compared."""
    return [
        ("Suite", f"{group.suite}, version {group.version}"),
        ("Ranked by", spoken.unit(group)),
        ("Task", group.task or NONE),
        ("Quantized", group.scope),
        ("Data", f"{group.data}, digest {group.data_digest[:16] or NONE}"),
        ("Tokenizer", group.tokenizer[:60]),
        ("Training", group.budget),
        ("Estimator", group.estimator),
        ("Device class", group.device),
    ]
