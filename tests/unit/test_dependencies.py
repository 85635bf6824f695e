"""What pyproject.toml admits."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()

# Versions with known faults: security, or tools that do not start.
FAULTY = {
    "keras": ["3.12.0", "3.12.3", "3.13.0", "3.13.2", "3.14.0", "3.14.1", "3.15.0"],
    "tensorboard": ["2.20.0"],
}
SOUND = {"keras": ["3.12.4", "3.15.1"], "tensorboard": ["2.21.0"]}


def find_requirement(name):
    """The requirement of a package; TOML is read by Python from 3.11 on alone."""
    lines = [line.strip().strip('",') for line in PYPROJECT.splitlines()]
    (found,) = [line for line in lines if line.startswith(f"{name}>")]
    return Requirement(found)


@pytest.mark.parametrize("name", FAULTY)
def test_no_version_with_a_known_fault_is_admitted(name):
    specifier = find_requirement(name).specifier
    assert [v for v in FAULTY[name] if v in specifier] == []
    assert [v for v in SOUND[name] if v in specifier] == SOUND[name]


@pytest.mark.parametrize("name", FAULTY)
def test_this_environment_has_an_admitted_version(name):
    from importlib.metadata import version

    assert version(name) in find_requirement(name).specifier
