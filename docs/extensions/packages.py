"""The directive `package`, which shows all public names of a package, and the check of them."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

OTHERS = "extra_repr"  # torch's, which says what a module prints


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive; warn of public names that no page shows."""
    app.add_directive("package", Package)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}


class Package(SphinxDirective):
    """The docstrings of a package's `__all__`; a name of another package is shown there."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{directives(self.arguments[0])}\n```")


def directives(package: str) -> str:
    """The directives of autodoc; constants that the package imports have one of their own."""
    module = import_module(package)
    documented = {name for _, name in ModuleAnalyzer.for_module(package).find_attr_docs()}
    foreign, constants = [OTHERS], []
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            constants += [name] * (name not in documented)
        elif not value.__module__.startswith(package):
            foreign.append(name)
    lines = [f".. automodule:: {package}", "   :members:", "   :undoc-members:"]
    lines += [f"   :exclude-members: {', '.join(foreign)}"]
    return "\n".join([*lines, "", *(f".. autodata:: {package}.{name}" for name in constants)])


def missing(packages: Iterable[str], shown: Iterable[str]) -> Iterator[str]:
    """The public names of packages that no page shows, there or where they are defined."""
    last = {name.rpartition(".")[2] for name in shown}
    for package in packages:
        for name in getattr(import_module(package), "__all__", ()):
            if name not in last:
                yield f"{package}.{name}"


def _check(app: Sphinx, env: BuildEnvironment) -> None:
    domain = env.domains.python_domain
    for name in missing(domain.modules, domain.objects):
        getLogger(__name__).warning("no page shows `%s`", name)
