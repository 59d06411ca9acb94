"""Headless Chromium: what a page becomes after its script ran, and how it looks."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
BINARY = next((found for name in NAMES if (found := shutil.which(name))), None)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",
    "--enable-logging=stderr",
    "--v=0",
)
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"


@dataclass(frozen=True, slots=True)
class Seen:
    """The document after its script, and what the console said."""

    dom: str
    console: list[str]


def dump(page: Path, profile: Path, *flags: str) -> Seen:
    done = _run(page, profile, "--dump-dom", *flags)
    return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def screenshot(page: Path, profile: Path, out: Path, *flags: str) -> Path:
    _run(page, profile, f"--screenshot={out}", *flags)
    return out


def _run(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(BINARY), *QUIET, NO_NETWORK, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
