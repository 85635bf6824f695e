"""`mnist-dist VERB`: what a person sees of each program before it runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_dist
from mnist_dist.__main__ import VERBS

PACKAGE = Path(mnist_dist.__file__).parent


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_the_manual_and_every_flag(verb):
    result = subprocess.run(
        [sys.executable, "-m", "mnist_dist", verb, "--help"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert result.stderr == ""
    source = (PACKAGE / f"{verb}.py").read_text()
    manual = ast.get_docstring(ast.parse(source))
    assert result.stdout.startswith(manual)
    if verb == "train":
        source = (PACKAGE / "cli" / "train_flags.py").read_text()
    defined = re.findall(r'^(?:\w+ = )?[\w.]+\(\s*"(\w+)"', source, re.MULTILINE)
    assert len(defined) >= 5
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", result.stdout, re.MULTILINE)
    assert set(defined) <= set(shown)
