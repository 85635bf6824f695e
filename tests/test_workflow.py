"""The workflow: the same command as by hand, on every Python that the package names."""

from importlib.metadata import metadata
from pathlib import Path

import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
(JOB,) = WORKFLOW["jobs"].values()
MATRIX = JOB["strategy"]["matrix"]


def test_every_supported_python_is_tested():
    supported = SpecifierSet(metadata("mnist_dist")["Requires-Python"])
    expected = [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    assert MATRIX["python"] == expected


def test_every_job_runs_the_command_of_the_build_page():
    commands = [step["run"] for step in JOB["steps"] if "run" in step]
    assert len(commands) == 1
    assert commands[0].split()[-2:] == ["tools/test.sh", "--system-packages"]
    assert (ROOT / "tools" / "test.sh").stat().st_mode & 0o111
    assert "continue-on-error" not in JOB


def test_other_kernels_and_arm_are_tested():
    settings = [job["kernels"].split() for job in MATRIX["include"]]
    assert [
        "TF_ENABLE_ONEDNN_OPTS=1",
        "ONEDNN_MAX_CPU_ISA=AVX2",
        "XLA_FLAGS=--xla_cpu_max_isa=AVX2",
    ] in settings
    assert "ubuntu-24.04-arm" in [job["runner"] for job in MATRIX["include"]]
    for job in MATRIX["include"]:
        assert job["python"] in MATRIX["python"]
