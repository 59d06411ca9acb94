"""A notebook without the browser: cells run one after the other in one namespace."""

import ast
from typing import Any


class Notebook:
    """`cell(source)` runs it and returns what a notebook would show: the value of a last line that is an expression."""

    def __init__(self, **names: Any) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__", **names}
        self.run = 0

    def cell(self, source: str) -> Any:
        self.run += 1
        where = f"cell {self.run}"
        body = ast.parse(source, where).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), where, "exec"), self.names)
        return eval(compile(ast.Expression(last.value), where, "eval"), self.names) if last else None
