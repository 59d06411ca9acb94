"""Mistakes as they are found, each placed in the tree of the file."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from qbench.suite.document import Node, under
from qbench.suite.mistakes import ENOUGH, Mark, Mistake

Path = Sequence[str | int]


@dataclass(slots=True)
class Findings:
    """Collects mistakes about the parts of `root`.

    Where something was `unreadable` a second mistake would say nothing new: it is `noted`, and not kept.
    """

    root: Node
    unreadable: Collection[Mark] = ()
    mistakes: list[Mistake] = field(default_factory=list[Mistake])
    noted: int = 0

    @property
    def enough(self) -> bool:
        return len(self.mistakes) >= ENOUGH

    def add(self, path: Path, text: str, key: bool = False) -> None:
        """Note a mistake about the value at `path`, or about its key."""
        self.noted += 1
        mark, shown = self.place(path, key)
        if mark not in self.unreadable:
            self.mistakes.append(Mistake(mark, shown, text))

    def place(self, path: Path, key: bool = False) -> tuple[Mark, str]:
        """Where `path` stands, and its dotted name; steps that the file does not have are passed over.

        A scalar may stand for a list of one, and a name for a mapping: then the scalar is the place.
        """
        node, shown = self.root, ""
        for part in path:
            below = child(node, part)
            if below is None:
                continue
            node, shown = below, under(shown, part)
        return (node.key if key and node.key else node.mark), shown


def child(node: Node, part: str | int) -> Node | None:
    """The value under a key or at an index; None where there is none."""
    if isinstance(node.value, Mapping):
        return node.value.get(str(part))
    if isinstance(node.value, tuple) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    return None
