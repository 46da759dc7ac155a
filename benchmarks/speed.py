"""What every stage costs beside a reference, in one run on one machine: `make bench`.

    python benchmarks/speed.py                          # everything, about ten minutes
    python benchmarks/speed.py --only preparation       # one row or several
    python benchmarks/speed.py --write docs/results/speed.md

Ratios of one run are what counts; times depend on the machine, which is named beside them. Each group of rows runs in a
process of its own, so that none inherits another's memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from measuring import Row, machine
from rich.console import Console
from rich.table import Table

GROUPS = (
    "synthesis", "preparation", "network", "network-gpu", "peak", "file-to-verdict", "training", "training-gpu",
    "au-pro", "growth", "prediction",
)  # fmt: skip
HEADINGS = ("stage", "against", "goal", "figure", "met", "ours", "reference", "peak memory")
SHOWN = ("stage", "goal", "figure", "met")
FAILED = "failed, see above"
START, END = "<!-- table -->", "<!-- end of table -->"  # what `--write` replaces; the rest of the file is written by hand


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--inside", choices=GROUPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        from speed_rows import ROWS

        print(json.dumps([row.to_dict() for row in ROWS[options.inside]()]))
        return
    console, described, begun = Console(), machine(), time.monotonic()
    for line in described:
        console.print(line, highlight=False, soft_wrap=True)
    rows: list[Row] = []
    for group in options.only:
        found = measure(group)
        rows += found
        for row in found:
            took = ", ".join(part for part in (row.ours, row.reference and f"against {row.reference}", row.memory) if part)
            console.print(
                f"{row.stage}: {row.figure}" + (f" [{took}]" if took else ""), highlight=False, markup=False, soft_wrap=True
            )
    minutes = (time.monotonic() - begun) / 60
    console.print(table_of(rows))
    if any(row.figure == FAILED for row in rows):
        sys.exit("some rows failed, see above" + (f"; {options.write} is left as it was" if options.write else ""))
    if options.write:
        write(options.write, rows, [*described, f"measured in {minutes:.0f} min"])
        console.print(f"written to {options.write}")


def measure(group: str) -> list[Row]:
    command = [sys.executable, str(Path(__file__)), "--inside", group]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return [Row(group, "", "", FAILED, False)]
    return [Row(**values) for values in json.loads(done.stdout.splitlines()[-1])]


def verdict(row: Row) -> str:
    return "-" if row.met is None else "yes" if row.met else "NO"


def cells(row: Row) -> tuple[str, ...]:
    return row.stage, row.against, row.goal, row.figure, verdict(row), row.ours, row.reference, row.memory


def table_of(rows: list[Row]) -> Table:
    """What fits a terminal; `--write` keeps the times, the memory and what each row is compared with."""
    table = Table()
    for heading in SHOWN:
        table.add_column(heading)
    for row in rows:
        table.add_row(row.stage, row.goal, row.figure, verdict(row))
    return table


def write(path: Path, rows: list[Row], described: list[str]) -> None:
    """Replace the table of a Markdown file, and with it the machine's description."""
    lines = [*(f"- {line}" for line in described), "", "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in cells(row)) + " |" for row in rows]
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# Speed\n\n{START}\n{END}\n"
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
