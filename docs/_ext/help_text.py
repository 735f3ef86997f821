"""A directive that shows what ``anynorm COMMAND --help`` says: ``{help-text} normalize``."""

import os
import subprocess
import sys

from docutils import nodes
from docutils.parsers.rst import Directive


class HelpText(Directive):
    """The help of the command line, asked for when the page is built."""

    optional_arguments = 1

    def run(self):
        """Run the command as a reader would, in a terminal of 80 columns without colours."""
        command = [sys.executable, "-m", "anynorm", *self.arguments, "--help"]
        environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return [nodes.literal_block(said, said, language="none")]


def setup(app):
    """Add the directive."""
    app.add_directive("help-text", HelpText)
    return {"parallel_read_safe": True}
