"""A hash of the source code that a method runs: a store does not reuse an edit that other code fitted."""

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from efface.core.declared import imported_from, source_file

PACKAGE = Path(__file__).parent.parent  # src/efface


@cache
def source_hash(module: str, package: Path = PACKAGE) -> str:
    """Names the source text of a module of efface and of every module of efface that it imports, directly or through others.

    Imports inside functions count too, wherever they stand. Of an installed package's method, its own package's modules count as well.
    Not covered: the packages' own `__init__` (efface's version is in a fit's name), what is imported by a computed name, and the
    versions of other packages, torch, diffusers and transformers included.

    Args:
        module: such as "efface.erasers.uce".
        package: efface's folder.
    """
    digest, found = hashlib.sha256(), sources(module, package)
    for name in sorted(found):
        digest.update(f"{name}\n{len(found[name])}\n".encode() + found[name])
    return digest.hexdigest()[:16]


def sources(module: str, package: Path = PACKAGE) -> dict[str, bytes]:
    """The source of a module and of all that it imports of efface and of its own package, by module name."""
    top, places = module.partition(".")[0], {package.name: package}
    if top not in places:
        file = source_file(top)
        places[top] = file.parent if file.name == "__init__.py" else file.with_suffix("")
    todo, found = [module], {}
    while todo:
        name = todo.pop()
        file = _file(name, places)
        if name in found or file is None or name == package.name:
            continue
        found[name] = file.read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                where = imported_from(node, name)
                todo += [where, *(f"{where}.{alias.name}" for alias in node.names)]
    return found


def _file(name: str, places: Mapping[str, Path]) -> Path | None:
    """The file of a module of these packages; None for any other name."""
    first, *parts = name.split(".")
    if first not in places:
        return None
    path = places[first].joinpath(*parts)
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
