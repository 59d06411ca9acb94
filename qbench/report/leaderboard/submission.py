"""submission.yaml: who sends a run, what model it is of, and the digests of what was sent."""

import re
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from qbench.report.leaderboard.hostile import SUBMISSION, plain
from qbench.results.lines import RECORDS
from qbench.results.origin import MANIFEST
from qbench.suite.document import parse
from qbench.suite.explain import note
from qbench.suite.findings import Findings
from qbench.suite.form import Form

VERSION = 1
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
SIGNED = (RECORDS, MANIFEST)  # files whose digests a submission names

_LINK = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[^\s\"'<>\\^`{}|]*)?")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def _version(value: int) -> int:
    if value != VERSION:
        newer = "; upgrade qbench-suite to read it" if value > VERSION else ""
        raise ValueError(f"this qbench reads submissions of version {VERSION}{newer}")
    return value


def _line(text: str) -> str:
    if text != plain(text) or text != " ".join(text.split()):
        raise ValueError("one line of text, without control characters or needless spaces")
    return text


def _text(text: str) -> str:
    if text != plain(text.replace("\n", " "), 1000):
        raise ValueError("text without control characters")
    return text


def _link(text: str) -> str:
    if not _LINK.fullmatch(text) or text != plain(text, 300):
        raise ValueError("a link starts with https:// and has no spaces, quotes or brackets")
    return text


def _id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError("a submission is named by lower-case letters, digits and hyphens")
    return text


def _digests(found: dict[str, str]) -> dict[str, str]:
    for name, digest in found.items():
        if name not in SIGNED or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"digests are 64 hex digits (sha256sum) of {' and '.join(SIGNED)}")
    return found


Line = Annotated[str, Field(min_length=1, max_length=120), AfterValidator(_line)]
Link = Annotated[str, Field(max_length=300), AfterValidator(_link)]


class Supersedes(Form):
    """An earlier submission of the same people that this one replaces, and why."""

    submission: Annotated[str, AfterValidator(_id)]
    reason: Line


class Submission(Form):
    submission: Annotated[int, AfterValidator(_version)]
    who: Line
    model: Line
    licence: Line
    links: Annotated[tuple[Link, ...], Field(max_length=10)] = ()
    provenance: Literal["self-attested", "reproduced"] = "self-attested"
    note: Annotated[str, Field(max_length=1000), AfterValidator(_text)] = ""
    digests: Annotated[dict[str, str], AfterValidator(_digests), Field(default_factory=dict[str, str])]
    supersedes: Annotated[tuple[Supersedes, ...], Field(max_length=20)] = ()


def read(folder: Path) -> tuple[Submission | None, list[str]]:
    """The submission and no faults, or None and every fault, each with its line.

    Tags, aliases and duplicate keys are refused by the parser, so a short text cannot become a long one.
    """
    try:
        text = (folder / SUBMISSION).read_bytes().decode()
    except UnicodeDecodeError as error:
        return None, [f"{SUBMISSION}: byte {error.start} is not UTF-8"]
    tree, mistakes = parse(text, SUBMISSION)
    if tree is None or not isinstance(tree.value, Mapping):
        return None, [plain(str(one)) for one in mistakes] or [f"{SUBMISSION}: a mapping of keys to values is expected"]
    findings = Findings(tree, frozenset(one.mark for one in mistakes), mistakes)
    try:
        made = Submission.model_validate(tree.plain())
    except ValidationError as error:
        made = None
        for fault in error.errors(include_url=False):
            note(findings, (), Submission, fault)
    if findings.mistakes:
        return None, [plain(str(one)) for one in sorted(set(findings.mistakes))[:50]]
    return made, []


def schema() -> dict[str, Any]:
    """The form as JSON Schema, for editors and other tools; `check` also looks at what the digests stand for."""
    made = Submission.model_json_schema()
    made["properties"]["submission"] |= {"const": VERSION}
    made["properties"]["links"]["items"] |= {"pattern": f"^{_LINK.pattern}$"}
    made["properties"]["digests"] |= {"required": list(SIGNED), "additionalProperties": {"pattern": "^[0-9a-f]{64}$"}}
    made["properties"]["digests"].pop("default", None)
    made["required"].append("digests")
    made["$defs"]["Supersedes"]["properties"]["submission"] |= {"pattern": f"^{_ID.pattern}$"}
    return {"$schema": SCHEMA, "$id": "submission.json", **made}


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def unsigned(folder: Path, submission: Submission) -> list[str]:
    """Files that are not what the submission says they are, with the line that would be right."""
    right = {name: digest(folder / name) for name in SIGNED}
    return [
        f"{name} is {'not the file that was submitted' if name in submission.digests else 'not signed'}; if it is "
        f"meant to be, write under digests: {name}: {right[name]}"
        for name in SIGNED
        if submission.digests.get(name) != right[name]
    ]
