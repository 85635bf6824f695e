"""Lint, format and types of all code, beside the other tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("check", ["mypy", "ruff check", "ruff format --check"])
def test_code_passes(check):
    result = subprocess.run(
        [sys.executable, "-m", *check.split()], cwd=ROOT, capture_output=True, text=True
    )
    if result.returncode:
        pytest.fail(f"{check}:\n{result.stdout}{result.stderr}", pytrace=False)
