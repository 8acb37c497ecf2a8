"""All measurements, as two tables: `./build.sh bench [ROUNDS]`, by root, some five minutes.

README.md quotes the machine and lines of the first table as they are printed.
"""

from __future__ import annotations

import sys

from bench.tables import machine, markdown, tables
from support import find_pythons


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(machine(), flush=True)
    for table in tables(find_pythons(), rounds, seconds=60.0, records=10_000):
        print(f"\n{markdown(table)}", flush=True)


if __name__ == "__main__":
    main()
