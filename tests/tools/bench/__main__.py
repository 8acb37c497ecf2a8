"""All measurements, as tables, by root, some ten minutes.

README.md quotes the machine and lines of the first table as they are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from support import find_pythons
from tools.bench.tables import machine, markdown, tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="./build.sh bench", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=25)
    parser.add_argument("--beside", type=Path, metavar="FILE", help="another build of tattle")
    asked = parser.parse_args()
    print(machine(), flush=True)
    pythons = find_pythons()
    for table in tables(pythons, asked.beside, asked.rounds, seconds=60.0, records=10_000):
        print(f"\n{markdown(table)}", flush=True)


if __name__ == "__main__":
    main()
