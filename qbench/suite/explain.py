"""The file checked against its form, with pydantic's errors in the words of the file."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qbench.names import suggestion
from qbench.suite.findings import Findings, Path
from qbench.suite.form import REQUIRED, Form, SuiteForm
from qbench.suite.mistakes import ENOUGH


def checked(findings: Findings) -> tuple[SuiteForm, frozenset[str]]:
    """The file in its form, and the keys at its top that had to be left out of it because of mistakes."""
    raw = findings.root.plain()
    missing = [key for key in REQUIRED if key not in raw and not (key == "models" and "stacks" in raw)]
    for key in missing:
        findings.add((), f"{key} is missing; a suite has at least {', '.join(REQUIRED)}")
    try:
        return SuiteForm.model_validate(raw), frozenset(missing)
    except ValidationError as error:
        faults = error.errors(include_url=False)
    for fault in faults[:ENOUGH]:
        note(findings, (), SuiteForm, fault)
    bad = {str(fault["loc"][0]) for fault in faults}
    kept = {key: value for key, value in raw.items() if key not in bad}
    return SuiteForm.model_validate(kept), frozenset(bad | set(missing))


def note(findings: Findings, base: Path, form: type[Form], fault: ErrorDetails) -> None:
    """Turn one of pydantic's errors about the part at `base` into a mistake that teaches."""
    loc, kind = fault["loc"], fault["type"]
    if kind == "too_short" and len(fault["input"]) >= fault.get("ctx", {})["min_length"]:
        return  # pydantic counts only the items that are right, and each wrong one has a mistake of its own
    if kind == "extra_forbidden":
        known = list(_form_at(form, loc[:-1]).model_fields)
        findings.add((*base, *loc), f"unknown key{suggestion(str(loc[-1]), known)} known: {', '.join(known)}", key=True)
    elif kind == "missing":
        findings.add((*base, *loc[:-1]), f"{loc[-1]} is missing")
    elif kind == "value_error":
        findings.add((*base, *loc), f"found {described(fault['input'])}; {fault.get('ctx', {})['error']}")
    else:
        findings.add((*base, *loc), f"found {described(fault['input'])}{_wanted(fault)}")


_TYPES: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "string_pattern_mismatch": "text like {pattern}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
}
_EXAMPLES: Mapping[str, str] = {
    "suite": "lower-case letters, digits and hyphens",
    "thesis": "'above X' or 'below X', X a number",
}


def _wanted(fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    if fault["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return f"{suggestion(str(fault['input']), allowed)} allowed: {', '.join(allowed)}"
    if fault["type"] == "string_pattern_mismatch":
        return f"; wanted: {_EXAMPLES[str(fault['loc'][-1])]}"
    template = _TYPES.get(fault["type"])
    quote = (
        "; put it in quotes" if fault["type"] == "string_type" and not isinstance(fault["input"], tuple | dict) else ""
    )
    return f"; wanted: {template.format(**context) if template else fault['msg']}{quote}"


def described(value: Any) -> str:
    """
    >>> described(3), described(None), described((1, 2)), described("x" * 99)[:9]
    ('3', 'nothing', 'a list of 2', "'xxxxxxxx")
    """
    if isinstance(value, tuple):
        return f"a list of {len(cast(tuple[Any, ...], value))}"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else repr(value[:60] if isinstance(value, str) else value)


def _form_at(form: type[Form], loc: tuple[str | int, ...]) -> type[Form]:
    for part in loc:
        field = form.model_fields.get(str(part))
        form = next(_forms(field.annotation), form) if field else form
    return form


def _forms(annotation: Any) -> Iterator[type[Form]]:
    if isinstance(annotation, type) and issubclass(annotation, Form):
        yield annotation
    for inner in get_args(annotation):
        yield from _forms(inner)
