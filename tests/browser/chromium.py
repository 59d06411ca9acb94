"""Headless Chromium: what a page becomes after its script ran, and how it looks."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
TELL = """
const out = document.createElement("pre");
out.id = "said"; out.textContent = JSON.stringify(said);
document.body.append(out);
"""
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"


@dataclass(frozen=True, slots=True)
class Seen:
    """The document after its script, and what the console said."""

    dom: str
    console: list[str]


def asked(source: str, script: str, page: Path, profile: Path) -> dict[str, Any]:
    """What `script` left in its object `said` when it ran after the scripts of `source`, let through the page's policy.

    The page is written to the file `page`, where its links lead on; the console must stay silent.
    """
    script += TELL
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    probed = source.replace("script-src ", f"script-src 'sha256-{allowed}' ")
    page.write_text(probed.replace("</body>", f"<script>{script}</script></body>"))
    seen = dump(page, profile)
    assert seen.console == []
    found = re.search(r'<pre id="said">(.*?)</pre>', seen.dom, flags=re.S)
    assert found, "the script did not finish"
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def dump(page: Path, profile: Path, *flags: str) -> Seen:
    done = _run(page, profile, "--dump-dom", *flags)
    return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def screenshot(page: Path, profile: Path, out: Path, *flags: str) -> Path:
    _run(page, profile, f"--screenshot={out}", *flags)
    return out


def _run(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(BINARY), *QUIET, NO_NETWORK, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
