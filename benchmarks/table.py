"""Print the tables of a benchmark's JSON file, in Markdown.

    python -m benchmarks.table one.json

A ratio is a rival's time by that of the anynorm call with which it is compared: above 1, anynorm is faster. "The faster
of the two" takes for each shape the setting, with or without huge pages, in which torch is faster; both run with it.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anynorm._bench.report import Record, nbytes, shape_of

CACHE_UNKNOWN_NBYTES = 64 << 20
HUGE_PAGES = ", huge pages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    document = json.loads(parser.parse_args().file.read_text())
    records = document["contests"]
    print_machine(document)
    print("\nA ratio is the rival's time / anynorm's: above 1, anynorm is faster. Times are medians.")
    print_summary(records)
    print_against_copies(records, last_cache(document["machine"]))
    print_one_row([record for record in records if record["contest"] == "one row"])
    for title, group in grouped(records).items():
        print_cases(title, group)
    print_remarks(document)


def print_machine(document: Record) -> None:
    machine, arguments = document["machine"], document["arguments"]
    caches = ", ".join(
        f"L{cache['level']} {cache['nbytes'] >> 10} KiB (cores {cache['cores']})" for cache in machine["caches"]
    )
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    kernels = {result["kernel"] for _, _, result in each(document["contests"]) if "kernel" in result}
    print(f"- {machine['processor']}, {machine['cores']} cores in use, {caches}, memory {machine['memory']}")
    print(f"- {machine['system']}, huge pages {machine['huge_pages']}, Python {machine['python']}, {packages}")
    print(f"- anynorm {machine['anynorm']} ({machine['commit']}), kernels: {', '.join(sorted(kernels)) or 'none ran'}")
    print(f"- {machine['date']}, {arguments['threads_used']} thread(s){', quick run' if arguments['quick'] else ''}")


def print_summary(records: list[Record]) -> None:
    """Print the geometric mean and the least ratio of each rival, over the shapes of a norm and dtype."""
    print("\n## Summary\n")
    rows = []
    for title, group in grouped(records).items():
        for rival, ratios in all_ratios(group).items():
            least, shape = min(ratios)
            mean = statistics.geometric_mean([ratio for ratio, _ in ratios])
            rows.append([title, rival, against(group, rival), f"{mean:.2f}", f"{least:.2f} at {shape}", len(ratios)])
    print_table(["norm", "rival", "against", "geometric mean", "least", "shapes"], rows)


def print_against_copies(records: list[Record], cache_nbytes: int) -> None:
    """Print anynorm's time by that of a copy into the same buffer, where x is larger than the last cache."""
    rows = []
    for title, group in grouped(records).items():
        for record in group:
            case = record["case"]
            copies = [record["results"].get(name, {}).get("ratio") for name in ("copy", "copy by torch")]
            if nbytes(case) > cache_nbytes and any(copies):
                ours = record["results"][record["baseline"]]["quartiles"][1]
                by = [f"{1 / ratio:.2f}" if ratio else "-" for ratio in copies]
                moved = f"{2 * nbytes(case) / ours / 1e9:.1f}"
                rows.append([title, shape_of(case), f"{nbytes(case) / 1e6:.0f}", microseconds(ours), moved, *by])
    if rows:
        print(f"\n## Arrays beyond the last cache ({cache_nbytes >> 20} MiB): anynorm / copy\n")
        names = ["norm", "shape", "MB", "anynorm out=, us", "GB/s, read + written", "/ copy", "/ copy by torch"]
        print_table(names, rows)


def print_one_row(records: list[Record]) -> None:
    rows = []
    for record in records:
        results = record["results"]
        for name in (record["baseline"], "anynorm on torch"):
            if "seconds" in results.get(name, {}) and "seconds" in results.get("torch", {}):
                pairs = zip(results["torch"]["seconds"], results[name]["seconds"], strict=True)
                ratio = statistics.median(theirs / ours for theirs, ours in pairs)
                times = [f"{results[which]['quartiles'][1] * 1e6:.2f}" for which in (name, "torch")]
                rows.append([record["case"]["norm"], name, *times, f"{ratio:.2f}"])
    if rows:
        print(f"\n## One row: the whole call, {shape_of(records[0]['case'])} {records[0]['case']['dtype']}\n")
        print_table(["norm", "call", "us", "torch, us", "ratio"], rows)


def print_cases(title: str, group: list[Record]) -> None:
    """Print a row for each shape: times of the anynorm calls, ratios of the rivals."""
    shapes = list(dict.fromkeys(shape_of(record["case"]) for record in group))
    baselines = list(dict.fromkeys(record["baseline"] for record in group))
    rivals = [name for name, _ in unique_rivals(group)]
    cells: dict[tuple[str, str], str] = {}
    for record in group:
        for name, result in record["results"].items():
            key = (shape_of(record["case"]), name)
            if name == record["baseline"]:
                cells[key] = microseconds(result["quartiles"][1]) if "quartiles" in result else problem(result)
            else:
                cells[key] = f"{result['ratio']:.2f}" if "ratio" in result else problem(result)
    print(f"\n## {title}\n")
    names = ["shape", *(f"{name}, us" for name in baselines), *(f"{name} / {against(group, name)}" for name in rivals)]
    print_table(names, [[shape, *(cells.get((shape, name), "") for name in baselines + rivals)] for shape in shapes])


def print_remarks(document: Record) -> None:
    """List what was left out, what was wrong, and who used more cores than it was given."""
    remarks = [f"{name} was left out: {reason}" for name, reason in document["skipped"].items()]
    threads = document["arguments"]["threads_used"]
    busiest: dict[str, tuple[float, str]] = {}
    for record, name, result in each(document["contests"]):
        where = f"{title_of(record)}, {shape_of(record['case'])}"
        if "wrong" in result or "failed" in result:
            remarks.append(f"{where}: {name}: {problem(result)}: {result.get('wrong') or result.get('failed')}")
        elif result["cores"] > threads + 0.2:
            busiest[name] = max(busiest.get(name, (0.0, "")), (result["cores"], where))
    for name, (cores, where) in busiest.items():
        remarks.append(f"{name} kept up to {cores} cores busy where {threads} were allowed ({where})")
    if remarks:
        print("\n## Remarks\n")
        print("\n".join(f"- {remark}" for remark in remarks))


def grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Sort the contests by norm, dtype and axis; the one-row contest has a table of its own."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["contest"] != "one row":
            groups.setdefault(title_of(record), []).append(record)
    return groups


def title_of(record: Record) -> str:
    case = record["case"]
    title = f"{case['norm']} {case['dtype']}" + ("" if case["axis"] == -1 else f", axis={case['axis']}")
    return title + (", forward and backward" if case.get("of") == "dx" else "")


def all_ratios(group: list[Record]) -> dict[str, list[tuple[float, str]]]:
    """Map each rival to its ratios; a rival with and without huge pages also to those of the faster of the two."""
    found: dict[str, list[tuple[float, str]]] = {}
    medians: dict[str, dict[str, tuple[float, float]]] = {}
    for record, name, result in each(group):
        if name == record["baseline"] or "ratio" not in result:
            continue
        shape = shape_of(record["case"])
        found.setdefault(name, []).append((result["ratio"], shape))
        medians.setdefault(name, {})[shape] = (result["quartiles"][1], result["ratio"])
    for name in [name for name in medians if name + HUGE_PAGES in medians]:
        plain, huge = medians[name], medians[name + HUGE_PAGES]
        faster = {shape: min(plain[shape], huge[shape]) for shape in plain if shape in huge}
        found[f"{name}, the faster of the two"] = [(ratio, shape) for shape, (_, ratio) in faster.items()]
    return {name: ratios for name, ratios in found.items() if ratios}


def against(group: list[Record], rival: str) -> str:
    return dict(unique_rivals(group)).get(rival, "the same setting")


def unique_rivals(group: list[Record]) -> list[tuple[str, str]]:
    pairs = ((name, record["baseline"]) for record, name, _ in each(group) if name != record["baseline"])
    return list(dict.fromkeys(pairs))


def each(records: Iterable[Record]) -> Iterator[tuple[Record, str, Record]]:
    for record in records:
        for name, result in record["results"].items():
            yield record, name, result


def last_cache(machine: Record) -> int:
    return max((cache["nbytes"] for cache in machine["caches"]), default=CACHE_UNKNOWN_NBYTES)


def microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def problem(result: Record) -> str:
    return "wrong" if "wrong" in result else "failed" if "failed" in result else "no baseline"


def print_table(names: list[str], rows: list[list[Any]]) -> None:
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
