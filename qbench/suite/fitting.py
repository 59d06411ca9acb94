"""Whether the models of a suite can read its data, as far as the names of both say. Nothing is read here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qbench.data import catalog as data
from qbench.data.catalog import Kind
from qbench.models.spec import ModelSpec, Task
from qbench.names import UnknownName
from qbench.suite.value import Arm

if TYPE_CHECKING:
    from qbench.suite.findings import Findings

TASKS: Mapping[Kind, Task] = {"text": "language", "problems": "language", "images": "vision"}
ELSE: Mapping[Task, str] = {
    "language": "a language model reads text: set spec.task: vision, or give data such as stdlib",
    "vision": "a vision model reads images: give data such as digits, or leave out spec.task",
}


def check(name: str, arms: Sequence[Arm], findings: "Findings") -> None:
    """Note the first model that cannot read the data called `name`; the others most likely share the mistake."""
    for arm in arms:
        try:
            why = misfit(name, arm.model) if isinstance(arm.model, ModelSpec) else ""
        except (UnknownName, ValueError):  # a name that is wrong is a mistake of its own
            return
        if why:
            findings.add(("data",), f"arm {arm.name!r} cannot read {name}: {why}")
            return


def misfit(name: str, spec: ModelSpec) -> str:
    """Why a model cannot read the data called `name`; empty where the name has nothing against it.

    Raises UnknownName or BadData for a name that is wrong.

    >>> misfit("digits", ModelSpec())
    'a language model reads text: set spec.task: vision, or give data such as stdlib'
    >>> misfit("set:n=8", ModelSpec(context=32))
    'its problems are 16 tokens of a vocabulary of 102, the model has 32 and 256: set spec.context: 16'
    """
    kind = data.kind(name)
    if spec.task != TASKS[kind]:
        return ELSE[spec.task]
    return _problems(name, spec) if kind == "problems" else ""


def _problems(name: str, spec: ModelSpec) -> str:
    task = data.task(name)
    wanted = {"context": task.context} if spec.context != task.context else {}
    wanted |= {"vocabulary": task.vocabulary} if spec.vocabulary < task.vocabulary else {}
    if not wanted:
        return ""
    settings = " and ".join(f"spec.{key}: {value}" for key, value in wanted.items())
    return (
        f"its problems are {task.context} tokens of a vocabulary of {task.vocabulary}, the model has {spec.context} "
        f"and {spec.vocabulary}: set {settings}"
    )
