"""The source of a class and of all that it uses of this package, as one module that imports none of it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]


def standalone_source(root: type) -> str:
    """Python that defines ``root``: its module's definitions and those that they need, each after what it needs.

    A module whose names are used must import them at its top, by their own names.
    """
    found = _Collected()
    found.add(_Module.of(root.__module__), root.__name__)
    head = f'"""{root.__name__}, written by {_PACKAGE} export from its source (Apache-2.0). It needs no {_PACKAGE}."""'
    imports = sorted(found.imports, key=lambda line: (line.startswith("from"), line))
    return "\n\n\n".join(["\n".join([head, "", *imports]), *found.definitions]) + "\n"


@dataclass
class _Module:
    """A parsed module of this package."""

    lines: list[str]
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """By name: the statement, and the docstring of a constant after it."""
    own_imports: dict[str, str] = field(default_factory=dict)
    """Names from this package, with their modules."""
    imports: dict[str, str] = field(default_factory=dict)
    """Names from elsewhere, with their statements."""

    @classmethod
    def of(cls, name: str) -> "_Module":
        spec = find_spec(name)
        assert spec and spec.origin
        text = Path(spec.origin).read_text()
        module = cls(text.splitlines())
        statements = ast.parse(text).body
        for statement, after in zip(statements, [*statements[1:], ast.Pass()], strict=True):
            for defined in _defines(statement):
                module.definitions[defined] = [statement, *([after] if _is_docstring(after) else [])]
            if isinstance(statement, ast.Import | ast.ImportFrom):
                module._add_import(statement)
        return module

    def _add_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        origin = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
        for alias in statement.names:
            name = alias.asname or alias.name.partition(".")[0]
            if origin.partition(".")[0] == _PACKAGE:
                self.own_imports[name] = origin
            else:
                one = ast.ImportFrom(origin, [alias], 0) if origin else ast.Import([alias])
                self.imports[name] = ast.unparse(one)

    def source(self, name: str) -> str:
        first, last = self.definitions[name][0], self.definitions[name][-1]
        begin = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", []))])
        return "\n".join(self.lines[begin - 1 : last.end_lineno])


@dataclass
class _Collected:
    imports: set[str] = field(default_factory=set)
    definitions: list[str] = field(default_factory=list)
    _origins: dict[str, str] = field(default_factory=dict)
    """Source of each name that was met, its definition's place."""

    def add(self, module: _Module, name: str) -> None:
        source = module.source(name)
        if name in self._origins:
            if self._origins[name] != source:
                raise ValueError(f"two definitions of {name}")
            return
        self._origins[name] = source
        for used in _names(module.definitions[name][0]):
            if used in module.definitions:
                self.add(module, used)
            elif used in module.own_imports:
                self.add(_Module.of(module.own_imports[used]), used)
            elif used in module.imports:
                self.imports.add(module.imports[used])
        self.definitions.append(source)


def _defines(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Assign(targets=targets):
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
