"""What `anynorm bench` does."""

from __future__ import annotations

import argparse
import time
from typing import Any

from anynorm._bench import choice, plan, plot, report
from anynorm._bench.cases import Contest
from anynorm._bench.compare import changes, differences, load
from anynorm._bench.machine import usable_cores
from anynorm._bench.runner import begin, compete, write
from anynorm._cli.tables import print_table
from anynorm._cli.terminal import installed, output, progress, say, tell
from anynorm._cli.words import counted, of_nbytes, of_seconds

Record = dict[str, Any]
_COLUMNS = ("call", "time", "GB/s", "of copy", "of streaming copy", "memory", "ulp", "/ anynorm")
_CHOICE_COLUMNS = ("norm", "parameters", "operations an element", "time", "/ copy", "memory", "choose it for")


def run(parsed: argparse.Namespace) -> int:
    """Time the norms, show the tables, write what is asked for."""
    output()
    before = checked(parsed)
    norms = [f"{name}_norm" for name in parsed.norms or ("layer", "rms", "scale")]
    dtypes, libraries = parsed.dtypes or ["float32"], parsed.libraries or list(plan.LIBRARIES)
    shapes = parsed.shapes or (plan.QUICK_SIZES if parsed.quick else plan.SIZES)
    contests = plan.contests(*(list(dict.fromkeys(chosen)) for chosen in (norms, dtypes, shapes, libraries)))
    arguments = {"quick": parsed.quick, "threads_used": parsed.threads or usable_cores()}
    document = begin(contests, plan.rivals(), arguments)
    document["skipped"] |= plan.reasons(norms, dtypes, libraries)
    time_all(document, contests, parsed.quiet)
    show_choices(document)
    if before is not None:
        show_changes(before, document)
    if not parsed.quiet:
        for line in report.remarks(document):
            say(line, output())
    output().flush()
    if parsed.json is not None:
        write(document, parsed.json)
    if parsed.plot is not None:
        plot.draw(document, parsed.plot)
    for path in filter(None, (parsed.json, parsed.plot)):
        if not parsed.quiet:
            tell(f"wrote {path}")
    return 1 if any(is_wrong(record) for record in document["contests"]) else 0


def checked(parsed: argparse.Namespace) -> Record | None:
    """Refuse before anything is timed what would fail after it; return the document to compare with."""
    if parsed.plot is not None:
        if parsed.plot.suffix not in (".svg", ".png"):
            raise ValueError(f"--plot writes .svg or .png, and {parsed.plot} is neither")
        if not installed("matplotlib"):
            raise ValueError("--plot needs a package that is not installed: pip install matplotlib")
    for path in filter(None, (parsed.json, parsed.plot)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
    if "bfloat16" in parsed.dtypes and not installed("ml_dtypes"):
        raise ValueError("bfloat16 in NumPy needs a package that is not installed: pip install ml_dtypes")
    return None if parsed.compare is None else load(parsed.compare)


def time_all(document: Record, contests: list[Contest], quiet: bool) -> None:
    """Run the contests, each table above a progress bar; say first on what machine, and for how long."""
    seconds = plan.QUICK_SECONDS if document["arguments"]["quick"] else plan.SECONDS
    if not quiet:
        for line in [*report.machine(document), *filter(None, [report.busy(document)])]:
            tell(line)
        tell(f"timing {counted(len(contests), 'case')}, for about {of_seconds(seconds)} or less")
    taking_part = [{contest.baseline, *contest.rivals} - set(document["skipped"]) for contest in contests]
    total = sum(len(names) + 1 for names in taking_part)
    budget = plan.Budget(seconds, time.perf_counter())
    with progress("timing", lambda: total, quiet, printing=True, of_bytes=False) as advance:
        compete(document, contests, plan.rivals(), budget.rounds, show, lambda: advance(1))


def show(record: Record) -> None:
    """Print the table of a contest, and what was wrong in it."""
    found = list(report.lines(record))
    rows = [cells(line) for line in found if not line.problem]
    print_table(report.title(record), _COLUMNS, rows, [place for place, row in enumerate(rows) if is_ours(row[0])])
    for line in found:
        if line.problem:
            say(f"  {line.name}: {line.problem}", output())
    output().flush()


def show_choices(document: Record) -> None:
    """Print what each norm holds, computes and takes, where more than one was timed."""
    for title, found in choice.choices(document):
        rows = [
            [
                one.norm, str(one.parameters), str(one.operations),
                "" if one.seconds is None else of_time(one.seconds),
                "" if one.of_copy is None else f"{one.of_copy:.2f}",
                "" if one.memory is None else of_memory(one.memory), one.use,
            ]
            for one in found
        ]  # fmt: skip
        print_table(title, _CHOICE_COLUMNS, rows, text=(0, len(_CHOICE_COLUMNS) - 1))


def cells(line: report.Line) -> list[str]:
    """The cells of a line, for people."""

    def said(value: float | None, how: str) -> str:
        return "" if value is None else how.format(value)

    memory = "" if line.memory is None else of_memory(line.memory)
    return [
        line.name, of_time(line.seconds or 0.0), said((line.bandwidth or 0.0) / 1e9, "{:.1f}"),
        said(line.of_copy, "{:.0%}"), said(line.of_streaming, "{:.0%}"), memory, said(line.ulp, "{:.2g}"),
        said(line.beside, "{:.2f}"),
    ]  # fmt: skip


def of_memory(count: int) -> str:
    """Bytes; few of them cannot be told from what else goes on in the process."""
    return "< 1 MB" if count < report.MEMORY_NOISE_NBYTES else of_nbytes(count)


def of_time(seconds: float) -> str:
    """A time from a microsecond on, in three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def show_changes(before: Record, document: Record) -> None:
    """Print times then and now; what changed by more than the noise stands out."""
    found = list(changes(before, document))
    if not found:
        say("nothing to compare: the two runs have no case in common", output())
        return
    rows = [
        [f"{one.case} {one.name}", of_time(one.then), of_time(one.now), f"{one.ratio:.2f}", one.marked]
        for one in found
    ]  # fmt: skip
    marked = [place for place, one in enumerate(found) if one.marked]
    print_table("beside the run before", ("call", "then", "now", "now / then", "beyond the noise"), rows, marked)
    for line in differences(before, document):
        say(f"changed: {line}", output())


def is_ours(name: str) -> bool:
    """Whether a call is one of anynorm."""
    return name.startswith(plan.OURS)


def is_wrong(record: Record) -> bool:
    """Whether a result of anynorm was."""
    return any("wrong" in result for name, result in record["results"].items() if is_ours(name))
