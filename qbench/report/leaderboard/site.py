"""The leaderboard as files: one page to search, one for each group, model and quantizer, and the rows as data."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from qbench.report import assets, payload, svg
from qbench.report.leaderboard import front, tables
from qbench.report.leaderboard.board import Board
from qbench.report.leaderboard.entries import Entry, Group
from qbench.report.leaderboard.ranks import spoken
from qbench.report.words import number
from qbench.results import digest
from qbench.results.files import make_folder, write_whole

NONE = "—"
MARK = "qbench-leaderboard"  # a file that says: this folder is ours to write into
SHOWN = (
    *("rank_best", "rank_worst", "model", "quantizer", "value", "low", "high", "loss_increase", "bits_per_value"),
    *("bytes", "n", "seeds", "seed_floor", "date", "commit", "provenance", "superseded_by", "submission"),
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
        write_whole(out / name, content)
    return [out / name for name in pages]


def contents(board: Board) -> dict[str, bytes]:
    """Every file of the site by its path."""
    rows = board.rows
    made: dict[str, bytes] = {
        "index.html": _index(board, rows),
        "corrections.html": _page("corrections", "", title="Corrections", corrections=board.corrections),
        "style.css": (assets.read("page.css") + _asset("board.css")).encode(),
        "rows.csv": tables.as_csv(rows),
        "rows.json": tables.as_json(rows),
        "rows.parquet": tables.as_parquet(rows),
        MARK: b"written by qbench leaderboard build\n",
        ".nojekyll": b"",
    }
    for group, found in board.groups.items():
        made[f"groups/{group.id}.html"] = _group(group, found)
    for kind, names in (("model", [one.model for one in rows]), ("quantizer", [one.quantizer for one in rows])):
        for name in dict.fromkeys(names):
            own = [one for one in rows if getattr(one, kind) == name]
            made[address(kind, name)] = _listing(kind, name, own, board)
    return made


def address(kind: str, name: str) -> str:
    """The page of a model or quantizer: readable, and no two names share one.

    >>> address("model", "../Ä/x y")
    'models/x-y-14be78.html'
    """
    word = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:20].rstrip("-")
    return f"{kind}s/{word}-{digest.of(name)[:6]}.html"


def _index(board: Board, rows: Sequence[Entry]) -> bytes:
    script = _asset("board.js")
    return _page(
        "index",
        "",
        title="Leaderboard",
        script=Markup(script),
        script_hash=assets.digest(script),
        groups=[(group, _facts(group), found) for group, found in board.groups.items()],
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
        ["group", *SHOWN], [[place[row.group], *(found[name] for name in SHOWN)] for row, found in lines]
    )
    return {
        "groups": [[group.id, group.title, _metric(group)] for group in board.groups],
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
        rows=rows,
        chart=Markup(front.draw(group, rows)),
        swatches=Markup(svg.swatches()),
        legend=[(Markup(svg.key(i)), name) for i, name in enumerate(models)],
        summary=front.panel(group, rows).summary if front.front(rows) else "",
        fronts=front.front(rows),
    )


def _listing(kind: str, name: str, rows: Sequence[Entry], board: Board) -> bytes:
    senders = {one.name: one.submission for one in board.submissions}
    submitted = [(key, senders[key]) for key in dict.fromkeys(row.submission for row in rows)]
    other = "quantizer" if kind == "model" else "model"
    return _page("listing", "../", title=name, kind=kind, other=other, rows=rows, submitted=submitted)


def _page(template: str, root: str, **context: Any) -> bytes:
    text = _template(template).render(root=root, **{"script_hash": "", **context})
    return (text + "\n").encode()


@cache
def _template(name: str) -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(address=address, rank=_rank, value=_value, bits=_number, metric=_metric)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return environment.from_string(_asset("base.html").replace("<!-- body -->", _asset(f"{name}.html")))


def _asset(name: str) -> str:
    return files("qbench.report.leaderboard").joinpath(name).read_text(encoding="utf-8")


def _facts(group: Group) -> Iterable[tuple[str, str]]:
    """The rules of a group: rows that differ in any of them are not compared."""
    return [
        ("Suite", f"{group.suite}, version {group.version}"),
        ("Ranked by", _metric(group)),
        ("Quantized", group.scope),
        ("Data", f"{group.data}, digest {group.data_digest[:16] or NONE}"),
        ("Tokenizer", group.tokenizer[:60]),
        ("Training", group.budget),
        ("Estimator", group.estimator),
        ("Device class", group.device),
    ]


def _metric(group: Group) -> str:
    return front.WORDS.get(group.metric, group.metric)


def _rank(row: Entry) -> str:
    return spoken(row.rank) if row.rank is not None else NONE


def _number(value: float | None) -> str:
    return NONE if value is None else number(value)


def _value(row: Entry) -> str:
    reach = max(row.high - row.value, row.value - row.low)
    return f"{number(row.value, 4)} ± {number(reach, 2)}" if reach < float("inf") else f"{number(row.value, 4)} ± ?"
