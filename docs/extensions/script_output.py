"""A directive that runs a script of the documentation and shows what it prints and draws."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

DRAWN = Path("drawn")  # in the folder of the pages, and not in the repository


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive `script-output`."""
    app.add_directive("script-output", ScriptOutput)
    return {"parallel_read_safe": True}


class ScriptOutput(SphinxDirective):
    """The standard output of a script as a block of text, then the SVG files that it writes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        source = Path(self.env.srcdir)
        with TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, str(source / self.arguments[0])],
                cwd=folder,
                env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(source.parent)},
                capture_output=True,
                check=False,
                text=True,
            )
            if done.returncode != 0:
                raise self.error(f"{self.arguments[0]} failed: {done.stderr.strip()[-500:]}")
            figures = sorted(Path(folder).glob("*.svg"))
            (source / DRAWN).mkdir(exist_ok=True)
            for figure in figures:
                shutil.copy(figure, source / DRAWN / figure.name)
        images = [f"![What the script draws](/{DRAWN / figure.name})" for figure in figures]
        return self.parse_text_to_nodes("\n\n".join([f"```text\n{done.stdout}```", *images]))
