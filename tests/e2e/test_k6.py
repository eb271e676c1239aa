"""Cart events under load by k6, a load generator of others' making.

k6 is built from source, which takes minutes: this runs where `LAKEGATE_K6` names the program, which
`go install go.k6.io/k6@latest` makes.
"""

import json
import os
import subprocess

import pytest

from conftest import ROOT
from test_events import shop, stored  # noqa: F401

pytestmark = pytest.mark.skipif(not os.environ.get("LAKEGATE_K6"), reason="LAKEGATE_K6 is not set: the path of k6")


def test_what_k6_was_told_is_stored_is_stored_once(shop, tmp_path):
    summary = tmp_path / "summary.json"
    command = [os.environ["LAKEGATE_K6"], "run", "--quiet", "--summary-export", summary, "-e", f"URL={shop.http}", "-e", "SECONDS=10"]
    ran = subprocess.run([*command, ROOT / "tests/k6/events.js"], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    metrics = json.loads(summary.read_text())["metrics"]
    assert metrics["checks"]["fails"] == 0 and metrics["acknowledged"]["count"] > 16 * 500
    assert stored(shop) == metrics["acknowledged"]["count"]
    assert shop.sql("SELECT count(DISTINCT event_id) AS n FROM default.events")[0]["n"] == metrics["acknowledged"]["count"]
