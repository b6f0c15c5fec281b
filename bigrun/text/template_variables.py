"""The variables that a Jinja program may read from outside: those that it has not set on every way to where it reads them.

Jinja's own `meta.find_undeclared_variables` also names what is set in one branch and read in the same branch only, as most
variables of chat templates are.
"""

from __future__ import annotations

from collections.abc import Iterable

from jinja2 import nodes
from jinja2.visitor import NodeVisitor


def variables_from_outside(tree: nodes.Template) -> set[str]:
    """Names that the program may look up in what it is given, the environment's globals among them."""
    visitor = _Visitor()
    visitor.visit(tree)
    visitor.finish()
    return visitor.read


class _Visitor(NodeVisitor):
    """Goes through the program in the order of execution; `_known` are the names that are certainly set at that place."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self._known: set[str] = {"self"}
        self._macros: list[tuple[nodes.Macro, set[str]]] = []

    def finish(self) -> None:
        """The bodies of macros: they see what is set at the top by the time of a call, also below their definition."""
        at_the_top = self._known
        while self._macros:
            macro, there = self._macros.pop()
            self._known = at_the_top | there | {"varargs", "kwargs", "caller"}
            self._all(macro.args)
            self._all(macro.body)

    def visit_Name(self, node: nodes.Name) -> None:
        if node.ctx != "load":
            self._known.add(node.name)
        elif node.name not in self._known:
            self.read.add(node.name)

    def visit_NSRef(self, node: nodes.NSRef) -> None:
        if node.name not in self._known:
            self.read.add(node.name)

    def visit_Assign(self, node: nodes.Assign) -> None:
        self.visit(node.node)
        self.visit(node.target)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> None:
        self._within([*([node.filter] if node.filter else []), *node.body])
        self.visit(node.target)

    def visit_If(self, node: nodes.If) -> None:
        ways = []
        for branch in (node, *node.elif_):
            self.visit(branch.test)
            ways.append(self._within(branch.body))
        ways.append(self._within(node.else_))
        self._known |= set.intersection(*ways)

    def visit_For(self, node: nodes.For) -> None:
        self.visit(node.iter)
        self._within([node.target, *([node.test] if node.test else []), *node.body], {"loop"})
        self._within(node.else_)

    def visit_With(self, node: nodes.With) -> None:
        self._all(node.values)
        self._within([*node.targets, *node.body])

    def visit_Macro(self, node: nodes.Macro) -> None:
        self._all(node.defaults)
        self._known.add(node.name)
        self._macros.append((node, set(self._known)))

    def visit_CallBlock(self, node: nodes.CallBlock) -> None:
        self._all([node.call, *node.defaults])
        self._within([*node.args, *node.body])

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> None:
        self._within([node.filter, *node.body])

    def visit_Scope(self, node: nodes.Scope) -> None:
        self._within(node.body)

    def _all(self, some: Iterable[nodes.Node]) -> None:
        for node in some:
            self.visit(node)

    def _within(self, some: Iterable[nodes.Node], known: Iterable[str] = ()) -> set[str]:
        """Visits what may not come to be executed, or has its own names; returns what is set at its end."""
        before = self._known
        self._known = before | set(known)
        self._all(some)
        after, self._known = self._known, before
        return after
