"""Tables on the terminal: by rich where it is installed and the output is a terminal, in plain columns elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from anynorm._cli.terminal import installed, output, printable, say


def print_table(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    marked: Sequence[int] = (),
    text: Sequence[int] = (0,),
) -> None:
    """Print a table to standard output.

    ``marked``: which rows stand out. ``text``: which columns are text; the others are numbers.
    """
    file = output()
    if file.isatty() and installed("rich"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(printable(title), style="bold"), title_justify="left", title_style="", header_style="")
        for place, name in enumerate(names):
            table.add_column(name, justify="left" if place in text else "right", overflow="fold")
        for place, row in enumerate(rows):
            table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if place in marked else None)
        Console(file=file).print(table, "")
        return
    widths = [max(len(row[place]) for row in [names, *rows]) for place in range(len(names))]
    say("", file)
    say(title, file)
    for row in [names, *rows]:
        cells = [row[i].ljust(width) if i in text else row[i].rjust(width) for i, width in enumerate(widths)]
        say(f"  {'  '.join(cells)}".rstrip(), file)
