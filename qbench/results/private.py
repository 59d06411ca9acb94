"""Nothing private is stored: absolute paths, host and user names are taken out of free text."""

import getpass
import os
import platform
import re
import sysconfig
from functools import cache

# Two parts at least, so that "int4/token", "1/2" and "/token" stay. Only in quotes may a folder's name hold a space.
_QUOTED = re.compile(r"""(['"])/(?:[^/'"\n]+/)+([^/'"\n]+)\1""")
_BARE = re.compile(r"""(?:(?<![\w/.~+-])|(?<=file://))(?:/[^\s/"'`:,;()<>]+)+/([^\s/"'`:,;()<>]+)""")
_WINDOWS = re.compile(r"""(?<!\w)[A-Za-z]:\\(?:[^\s\\"']+\\)*([^\s\\"']+)""")


def scrub(text: str) -> str:
    """`text` with well-known folders shortened, other absolute paths cut to their last part, and no host or user name.

    >>> scrub("int4/token failed in /data/runs/growth/model.pt, see https://qbench.org/a/b")
    'int4/token failed in .../model.pt, see https://qbench.org/a/b'
    """
    text = scrub_paths(text)
    for pattern, replacement in _names():
        text = pattern.sub(replacement, text)
    return text


def scrub_paths(text: str) -> str:
    """Only the paths: for text that must stay as it was written, such as a suite."""
    for pattern, replacement in _folders(_current_folder()):
        text = pattern.sub(replacement, text)
    text = _QUOTED.sub(r"\1.../\2\1", text)
    return _WINDOWS.sub(r".../\1", _BARE.sub(r".../\1", text))


@cache
def _folders(here: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Longest first: a site-packages folder may lie in the current folder, and that in the home folder."""
    libraries = {sysconfig.get_path(name): "lib" for name in ("purelib", "platlib", "stdlib")}
    known = {os.path.expanduser("~"): "~", here: ".", **libraries}
    # In a container the home or current folder may be "/", which is part of every path.
    places = sorted((place for place in known if len(place) > 1), key=len, reverse=True)
    return tuple((re.compile(re.escape(place) + r"(?![\w-])"), known[place]) for place in places)


@cache
def _names() -> tuple[tuple[re.Pattern[str], str], ...]:
    names = {platform.node(): "<host>", _user(): "<user>"}
    # "root" is nobody's name, and it is a word: root mean square.
    telling = {
        name: stand_in for name, stand_in in names.items() if len(name) > 2 and name not in ("root", "localhost")
    }
    return tuple((re.compile(rf"(?<!\w){re.escape(name)}(?!\w)"), stand_in) for name, stand_in in telling.items())


def _current_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted under a running process
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may run under a number that has no name
        return ""
