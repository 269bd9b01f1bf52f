"""A hash of the source code that a method runs: a store does not reuse an edit that other code fitted."""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent  # src/efface


@cache
def source_hash(module: str, package: Path = PACKAGE) -> str:
    """Names the source text of a module of efface and of every module of efface that it imports, directly or through others.

    Imports inside functions count too, wherever they stand. Not covered: the package's own `__init__` (its version is in a fit's
    name), what is imported by a computed name, and the versions of torch, diffusers and transformers.

    Args:
        module: such as "efface.erasers.uce".
        package: efface's folder.
    """
    digest, found = hashlib.sha256(), sources(module, package)
    for name in sorted(found):
        digest.update(f"{name}\n{len(found[name])}\n".encode() + found[name])
    return digest.hexdigest()[:16]


def sources(module: str, package: Path = PACKAGE) -> dict[str, bytes]:
    """The source of a module and of all that it imports of the package, by module name."""
    todo, found = [module], {}
    while todo:
        name = todo.pop()
        file = _file(name, package)
        if name in found or file is None:
            continue
        found[name] = file.read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:  # efface has no relative imports
                todo += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _file(name: str, package: Path) -> Path | None:
    """The file of a module of the package; None for any other name and for the package itself."""
    first, *parts = name.split(".")
    if first != package.name or not parts:
        return None
    path = package.joinpath(*parts)
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)
