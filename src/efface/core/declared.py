"""Reads a class's declarations (docstring, fields, class variables) from its source, without importing its module.

A list of methods or a mistyped flag must be answered at once, and importing torch and diffusers alone takes five seconds. Only the
declarations of the class are executed, so no declaration exists twice.
"""

import ast
import builtins
import importlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from efface.core.errors import EffaceError


@cache
def declared(module: str, name: str) -> type:
    """A frozen dataclass with the declarations of class `name` of `module` and of its bases in efface, without methods.

    Raises:
        EffaceError: an installed package's entry point names no module or class with a source.
    """
    node = _defined(module, name)
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{module}.{name} is not a class")
    body: list[ast.stmt] = [n for n in node.body if isinstance(n, ast.AnnAssign | ast.Assign | ast.Expr)]
    bases = [_origin(module, base.id) for base in node.bases if isinstance(base, ast.Name)]
    space = {"__name__": module, **_names(module, body)}
    parents = [declared(*origin) for origin in bases if _inside(origin[0], module)]
    space |= {f"parent{i}": parent for i, parent in enumerate(parents)}
    light = ast.ClassDef(name, [ast.Name(f"parent{i}", ast.Load()) for i in range(len(parents))], [], body, [])
    exec(compile(ast.fix_missing_locations(ast.Module([light], [])), module, "exec"), space)
    return dataclass(frozen=True, kw_only=True)(cast(type, space[name]))


@cache
def value(module: str, name: str) -> Any:
    """The value of a name at the top of `module`. A class whose source is read, or of a heavy package, becomes an empty class of its name.

    Raises:
        NameError: the module does not define or import it.
    """
    where, original = _origin(module, name)
    if not _inside(where, module):
        heavy = where.partition(".")[0] in ("torch", "diffusers", "transformers", "jaxtyping")
        return type(original, (), {}) if heavy else getattr(importlib.import_module(where), original)
    node = _defined(where, original)
    if isinstance(node, ast.ClassDef):
        return type(original, (), {})
    if isinstance(node, ast.FunctionDef):
        return getattr(importlib.import_module(where), original)
    return eval(compile(ast.Expression(node), where, "eval"), _names(where, [node]))


def docstring(module: str) -> str:
    """The docstring of a module."""
    return ast.get_docstring(_tree(module)) or ""


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


def source_file(module: str) -> Path:
    """The file of a module, found without importing it or the packages that it is in.

    Raises:
        EffaceError: no such module, or one without a source.
    """
    top, *parts = module.split(".")
    found = importlib.util.find_spec(top)
    if found is not None and found.origin:
        path = Path(found.origin).parent.joinpath(*parts) if parts else Path(found.origin)
        for file in (path, path.with_suffix(".py"), path / "__init__.py"):
            if file.suffix == ".py" and file.is_file():
                return file
    raise EffaceError(
        f"{module}: no Python source of this module is installed; correct the entry point that names it, or uninstall it"
    )


def imported_from(node: ast.ImportFrom, module: str) -> str:
    """The module that a line of `module` imports from, relative or not."""
    if not node.level:
        return node.module or ""
    package = module if source_file(module).name == "__init__.py" else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _inside(where: str, module: str) -> bool:
    """Whether the source of `where` is read for a class of `module`: efface's, and that of the same installed package."""
    return where.partition(".")[0] in ("efface", module.partition(".")[0])


def _names(module: str, nodes: Iterable[ast.AST]) -> dict[str, Any]:
    """The values of all names of the module that these nodes use."""
    read = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)]
    own = {n.id for n in read if isinstance(n.ctx, ast.Store)}  # such as the variable of a comprehension
    return {n: value(module, n) for n in {n.id for n in read} - own if not hasattr(builtins, n)}


def _origin(module: str, name: str) -> tuple[str, str]:
    """The module in which a name is defined, and its name there."""
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    where = imported_from(node, module)
                    return _origin(where, alias.name) if _inside(where, module) else (where, alias.name)
    return module, name


def _defined(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | ast.expr:
    """The class, the function or the assigned expression of a name of the module."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.value
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == name
            and node.value
        ):
            return node.value
    raise NameError(f"{module} defines no {name!r}")
