"""The map in the README is the territory. `python tests/test_map.py` redraws it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
START, END = "<!-- map -->\n", "<!-- end of map -->"
ORDER = [
    "cli",
    "report",
    "report/leaderboard",
    "report/study",
    "gate",
    "suite",
    "train",
    "evaluate",
    "capture",
    "metrics",
    "models",
    "data",
    "quant",
]
ORDER += ["results", "stats"]


def test_the_readme_has_every_module_with_its_own_words() -> None:
    readme = README.read_text()
    drawn = readme[readme.index(START) + len(START) : readme.index(END)]
    assert drawn == draw(), "run python tests/test_map.py"


def test_every_package_has_its_place_on_the_map() -> None:
    packages = {str(path.parent.relative_to(ROOT / "qbench")) for path in (ROOT / "qbench").glob("*/**/__init__.py")}
    assert packages == set(ORDER)


def test_files_stay_small() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / "qbench").rglob("*.py")
    }
    assert {name: lines for name, lines in sizes.items() if lines > 300} == {}


def draw() -> str:
    rows: list[tuple[str, str]] = [("__init__.py", first_line(ROOT / "qbench/__init__.py"))]
    for package in ORDER:
        folder = ROOT / "qbench" / package
        rows.append((f"{package}/", first_line(folder / "__init__.py")))
        rows += [
            (f"  {path.name}", first_line(path)) for path in sorted(folder.glob("*.py")) if path.stem != "__init__"
        ]
    rows += [
        (path.name, first_line(path)) for path in sorted((ROOT / "qbench").glob("*.py")) if path.stem != "__init__"
    ]
    width = max(len(name) for name, _ in rows)
    return "```\n" + "".join(f"{name:{width}}  {text}\n" for name, text in rows) + "```\n"


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} has no docstring"
    return docstring.splitlines()[0]


if __name__ == "__main__":
    text = README.read_text()
    README.write_text(text[: text.index(START) + len(START)] + draw() + text[text.index(END) :])
