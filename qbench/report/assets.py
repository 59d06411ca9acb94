"""Files that a page is made of, and the hashes by which its policy lets them run."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from qbench.report import svg


def read(name: str) -> str:
    return files("qbench.report").joinpath(name).read_text(encoding="utf-8")


def page(name: str, context: Mapping[str, Any], *styles: str) -> str:
    """The page of a run from the template `name`, with its style sheets and the script of all pages in it."""
    style, script = "".join(map(read, ("page.css", *styles))) + context.get("rules", ""), read("page.js")
    frame = {
        "style": Markup(style),
        "style_hash": digest(style),
        "script": Markup(script),
        "script_hash": digest(script),
        "swatches": Markup(svg.swatches()),
        "key": _key,
        "kind": "study",
    }
    return _environment().get_template(name).render({**frame, **context}) + "\n"


def _key(style: int) -> Markup:
    return Markup(svg.key(style))


@cache
def _environment() -> Environment:
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=FunctionLoader(read), autoescape=True, **options)


def digest(text: str) -> str:
    """As a Content-Security-Policy names the one style sheet and the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
