"""Files that a page is made of, and the hashes by which its policy lets them run."""

import base64
import hashlib
from importlib.resources import files


def read(name: str) -> str:
    return files("qbench.report").joinpath(name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """As a Content-Security-Policy names the one style sheet and the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
