"""What is laid over a suite file before it is checked: a profile, `--set` options, and `${parameters}`."""

import re
from collections.abc import Collection, Mapping, Sequence

from qbench.names import suggestion
from qbench.suite.document import DEEPEST, Node, parse, under
from qbench.suite.mistakes import ENOUGH, SHOWN, Mark, Mistake

Keys = Mapping[str, Node]

_PARAMETER = re.compile(r"\$\{([^{}]*)\}")


def keys(node: Node | None) -> Keys:
    """The parts of a mapping; none where the node is something else, which the form of the file reports."""
    return node.value if node is not None and isinstance(node.value, Mapping) else {}


def with_profile(tree: Node, name: str) -> tuple[Node, list[Mistake]]:
    """The tree with the partial values of a profile in place; mappings are merged, all else is replaced."""
    profiles = keys(keys(tree).get("profiles"))
    if name not in profiles:
        known = ", ".join(profiles) or "none"
        text = f"no profile {name!r}{suggestion(name, profiles)} known: {known}"
        return tree, [Mistake(Mark(f"--profile {name}"), "", text)]
    profile, declared = profiles[name], keys(keys(tree).get("params"))
    path = under("profiles", name)
    mistakes = [
        Mistake(node.key or node.mark, under(f"{path}.params", key), _undeclared(key, declared))
        for key, node in list(keys(keys(profile).get("params")).items())[:ENOUGH]
        if key not in declared
    ]
    if nested := keys(profile).get("profiles"):
        mistakes.append(Mistake(nested.key or nested.mark, path, "a profile holds no profiles"))
    kept = {key: node for key, node in keys(profile).items() if key != "profiles"}
    return merged(tree, Node(kept, profile.mark)), mistakes


def merged(base: Node, over: Node) -> Node:
    """`over` where it says something, else `base`; its marks stay its own."""
    if not (isinstance(base.value, Mapping) and isinstance(over.value, Mapping)):
        return over
    both = {key: merged(base.value[key], node) if key in base.value else node for key, node in over.value.items()}
    return Node({**base.value, **both}, base.mark, base.key)


def with_override(tree: Node, option: tuple[str, str], known: Collection[str]) -> tuple[Node, list[Mistake]]:
    """The tree with one `--set key=value` in place: a dotted key of the file, or the name of a parameter.

    `known` are the keys that a file may have at its top; deeper ones are checked with the rest of the file.
    """
    dotted, text = option
    mark = Mark(f"--set {dotted}")
    value, mistakes = parse(text, mark)
    if value is None or mistakes:
        return tree, mistakes
    parts, params = dotted.split("."), keys(keys(tree).get("params"))
    if parts[0] not in known and parts[0] in params:
        parts = ["params", *parts]
    if parts[0] not in known or (parts[0] == "params" and not (len(parts) > 1 and parts[1] in params)):
        names = [*known, *params, *(f"params.{name}" for name in params)]
        text = f"no key or parameter {dotted!r}{suggestion(dotted, names)} known: {', '.join([*known, *params])}"
        return tree, [Mistake(mark, "", text)]
    return _put(tree, parts, Node(value.value, mark, mark))


def _put(tree: Node, parts: Sequence[str], value: Node) -> tuple[Node, list[Mistake]]:
    if not parts:
        return value, []
    if len(parts) > DEEPEST:
        return tree, [Mistake(value.mark, "", f"nested more than {DEEPEST} levels deep")]
    if not isinstance(tree.value, Mapping):
        return tree, [
            Mistake(value.mark, "", f"there is no mapping that holds {parts[0]!r}; set the whole value above it")
        ]
    below = tree.value.get(parts[0], Node({}, value.mark, value.mark))
    below, mistakes = _put(below, parts[1:], value)
    return Node({**tree.value, parts[0]: below}, tree.mark, tree.key), mistakes


def substituted(tree: Node) -> tuple[Node, list[Mistake]]:
    """The tree with every `${name}` replaced by the parameter of that name.

    A parameter stands for a whole value and keeps its type; text around it is a mistake, and so is one in `params`.
    """
    params = keys(keys(tree).get("params"))
    mistakes: list[Mistake] = []

    def replaced(node: Node, path: str) -> Node:
        if isinstance(node.value, Mapping):
            return Node({key: replaced(n, under(path, key)) for key, n in node.value.items()}, node.mark, node.key)
        if isinstance(node.value, tuple):
            parts = (replaced(n, under(path, i)) for i, n in enumerate(node.value))
            return Node(tuple(parts), node.mark, node.key)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        found = _PARAMETER.fullmatch(node.value)
        name = str(found[1]) if found else None
        value = params[name].value if name is not None and name in params and not _in_params(path) else None
        if value is None and len(mistakes) < ENOUGH:
            mistakes.append(Mistake(node.mark, path, _misused(name, params, path)))
        # A path that was given on the command line starts from there, not from the file.
        mark = params[name].mark if name is not None and name in params and not params[name].mark.line else node.mark
        # A list in place of a scalar is a mistake of the parameter; copied into many places it could fill the memory.
        return Node(None if isinstance(value, Mapping | tuple) else value, mark, node.key)

    return replaced(tree, ""), mistakes


def _misused(name: str | None, params: Keys, path: str) -> str:
    if _in_params(path):
        return "a parameter is a plain value, not another parameter"
    if name in params:
        return f"parameter {name!r} holds nothing; give it one with --set {name}=VALUE"
    if name is None:
        return "${...} stands for a whole value, with nothing around it"
    return _undeclared(name, params)


def _undeclared(name: str, params: Keys) -> str:
    declared = list(params)[:SHOWN]
    return f"no parameter {name!r}{suggestion(name, declared)} declared: {', '.join(declared) or 'none'}"


def _in_params(path: str) -> bool:
    return path.partition(".")[0] == "params"
