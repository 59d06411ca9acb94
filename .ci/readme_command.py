"""Print the README's command for `run` or `tests`: CI runs what the README says, to the letter."""

import re
import sys
from pathlib import Path

HEADINGS = {"run": "Run the main job", "tests": "Run all tests"}
readme = (Path(__file__).parents[1] / "README.md").read_text()
found = re.search(rf"{HEADINGS[sys.argv[1]]}.*?```\n(.+?)\n```", readme, re.DOTALL)
if found is None:
    sys.exit(f"README.md has no command under {HEADINGS[sys.argv[1]]!r}")
print(found[1])
