"""The cart service under a storm: examples/cart with real ClickHouse and Redis, three services that are slow, failing, hanging, busy
and gone by turns, kills of ClickHouse, Redis and the server; then each event is looked for in each place.

    python scripts/cart_storm.py --events 1000000 --binary target/release/lakegate [--kafka 127.0.0.1:9092]

Runs tests/e2e/test_storm.py; needs its packages (tests/e2e/requirements.txt). Kafka: scripts/services/services.sh up kafka.
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--binary", default=ROOT / "target/release/lakegate")
    parser.add_argument("--kafka", default="", help="brokers; without them the two topics are left out")
    parser.add_argument("--folder", default="/tmp/lakegate-storm", help="for data and logs; emptied first")
    options = parser.parse_args()
    environment = dict(
        os.environ,
        LAKEGATE_BIN=str(pathlib.Path(options.binary).resolve()),
        LAKEGATE_STORM_EVENTS=str(options.events),
        LAKEGATE_STORM_KAFKA=options.kafka,
    )
    test = ROOT / "tests/e2e/test_storm.py"
    command = [sys.executable, "-m", "pytest", "-q", "-s", test, "--basetemp", options.folder, "-p", "no:cacheprovider"]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
