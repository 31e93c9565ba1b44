"""What do the front and what it does with traffic cost, and what do they save?

Run: python benchmarks/traffic.py --part front|routes|back|deploys [--rounds 20] [--json]

A real TorchServe with tiny models behind `marsmith serve --foreground`. What is compared runs in turns in one run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import traffic_back
import traffic_deploys
import traffic_front
import traffic_routes
from machine import machine_record

# Each returns its figures, and prints them as tables.
PARTS: dict[str, Callable[[int], dict[str, object]]] = {
    "front": traffic_front.measure,
    "routes": traffic_routes.measure,
    "back": traffic_back.measure,
    "deploys": traffic_deploys.measure,
}
TABLES: dict[str, Callable[[dict[str, object]], str]] = {
    "front": traffic_front.tables,
    "routes": traffic_routes.tables,
    "back": traffic_back.tables,
    "deploys": traffic_deploys.tables,
}


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = PARTS[args.part](args.rounds)
    if args.json:
        print(json.dumps({"machine": machine_record(), args.part: found}, indent=2))
    else:
        print(TABLES[args.part](found))


if __name__ == "__main__":
    main()
