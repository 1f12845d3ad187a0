"""The pipeline as one self-contained file, in the form of diffusers' `examples/community`.

It is put together from the modules of this package, so there is one source. Names stay as they are: what is private in
one module must not be defined in another.
"""

import ast
import sys
import textwrap
from collections import defaultdict
from importlib import resources

from . import __version__


# In an order in which no module needs a later one when it is executed.
MODULES = ("inputs", "grounding", "attention", "inversion", "smoothing", "pipeline")

_HEADER = '''\
# SPDX-License-Identifier: Apache-2.0
"""Ground-A-Video (arXiv 2310.01107) as one file: several edits of one clip at once, without training.

Put together from the modules of diffusers-groundavideo {version}: change those, not this file. It imports diffusers,
transformers and torch, and of what diffusers itself depends on numpy, Pillow and safetensors.
"""
'''
_LINE_LENGTH = 119


def bundle() -> str:
    """The source of the file.

    Raises:
        `ValueError`: If two modules define different things under one name, or a module imports what is not bundled.
    """
    modules = [_Module(name) for name in MODULES]
    _check_names(modules)
    statements_seen: set[str] = set()
    sections = [_HEADER.format(version=__version__) + "\n" + _merged_imports(modules)]
    for module in modules:
        sections.append(f"{_comment(module.docstring)}\n\n\n{module.body_without(statements_seen)}")
        statements_seen |= set(module.assignments)
    # What is said of the package in examples holds for this file.
    return "\n\n".join(sections).replace("from diffusers_groundavideo import", "from ground_a_video import")


class _Module:
    """A module of this package, taken apart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = (resources.files(__package__) / f"{name}.py").read_text(encoding="utf-8")
        tree = ast.parse(self.source)
        self.docstring = ast.get_docstring(tree) or ""
        self.imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        self.body = tree.body[1 + len(self.imports) :]
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in self.body):
            raise ValueError(f"{name}.py imports something below its first definition.")

    @property
    def assignments(self) -> list[str]:
        return [ast.unparse(node) for node in self.body if isinstance(node, ast.Assign | ast.AnnAssign)]

    def defined(self) -> dict[str, str]:
        """The names that the module defines, with the code that defines them."""
        names: dict[str, str] = {}
        for node in self.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names[node.name] = ast.unparse(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {ast.unparse(target): ast.unparse(node) for target in targets}
            else:
                raise ValueError(f"{self.name}.py executes `{ast.unparse(node)}` when it is imported.")
        return names

    def body_without(self, statements: set[str]) -> str:
        """What follows the imports, comments too, without assignments that were made before."""
        lines = self.source.splitlines()
        for node in self.body:
            if ast.unparse(node) in statements:
                assert node.end_lineno is not None
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        return "\n".join(lines[self.imports[-1].end_lineno :]).strip() + "\n"


def _check_names(modules: list[_Module]) -> None:
    meanings: dict[str, tuple[str, str]] = {}
    for module in modules:
        names = module.defined()
        for node in module.imports:
            if isinstance(node, ast.Import):
                names |= {alias.asname or alias.name: ast.unparse(ast.Import([alias])) for alias in node.names}
            elif node.level == 0:
                names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif node.module not in MODULES:
                raise ValueError(f"{module.name}.py imports .{node.module}, which is not bundled.")
        for name, meaning in names.items():
            where, first = meanings.setdefault(name, (module.name, meaning))
            if first != meaning:
                raise ValueError(f"{where}.py and {module.name}.py mean different things by `{name}`: rename one.")


def _merged_imports(modules: list[_Module]) -> str:
    """The imports of all modules from outside, in the order and form that ruff gives them."""
    plain: set[str] = set()
    named: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        for node in module.imports:
            aliases = [ast.unparse(alias) for alias in node.names]
            if isinstance(node, ast.Import):
                plain |= set(aliases)
            elif node.level == 0 and node.module is not None:
                named[node.module] |= set(aliases)

    def is_standard(name: str) -> bool:
        return name.split(".")[0].split(" ")[0] in sys.stdlib_module_names

    blocks = []
    for standard in (True, False):
        lines = [f"import {name}" for name in sorted(plain, key=str.lower) if is_standard(name) == standard]
        for name in sorted(named, key=str.lower):
            if is_standard(name) == standard:
                lines.append(_import_from(name, sorted(named[name], key=_rank)))
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _rank(name: str) -> tuple[int, str]:
    # Constants, then classes, then the rest.
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name.lower()


def _import_from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _LINE_LENGTH:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _comment(docstring: str) -> str:
    rule = "# " + "-" * (_LINE_LENGTH - 2)
    paragraphs = [
        textwrap.fill(paragraph, _LINE_LENGTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        for paragraph in docstring.split("\n\n")
    ]
    return "\n".join([rule, "\n#\n".join(paragraphs), rule])
