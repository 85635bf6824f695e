"""tools/install_system_packages.sh, with an apt-get that is a script: nothing is installed."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Knows every package but those that UNKNOWN names, as apt-get does: all or none.
APT_GET = """#!/bin/bash
echo "$*" >>"$LOG"
if [ "$2" = update ]; then exit "$UPDATE_CODE"; fi
for argument in "$@"; do
  if [[ " $UNKNOWN " == *" $argument "* ]]; then
    echo "E: Unable to locate package $argument" >&2
    exit 100
  fi
done
"""


def install(folder, *, unknown="", user_id=0, update_code=0, has_apt_get=True):
    """Returns the exit code, the errors, and the calls of apt-get."""
    commands = folder / "bin"
    commands.mkdir()
    scripts = {"id": f"#!/bin/bash\necho {user_id}\n"}
    if has_apt_get:
        scripts["apt-get"] = APT_GET
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    for name in ("bash", "sed", "grep"):
        (commands / name).symlink_to(f"/bin/{name}")
    packages, log = folder / "packages.txt", folder / "log"
    packages.write_text("# Comment.\nslurmd munge  # and why\n\nchromium\n")
    log.touch()
    script = f'set -euo pipefail; source "{ROOT}/tools/install_system_packages.sh"'
    process = subprocess.run(
        ["/bin/bash", "-c", script + '; install_system_packages "$1"', "-", packages],
        env={"PATH": str(commands), "LOG": str(log), "UNKNOWN": unknown}
        | {"UPDATE_CODE": str(update_code)},
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stderr, log.read_text().splitlines()


INSTALL = "-qq install -y --no-install-recommends"


def test_all_are_installed_in_one_call(tmp_path):
    assert install(tmp_path) == (
        0,
        "",
        ["-qq update", f"{INSTALL} slurmd munge chromium"],
    )


def test_package_that_is_not_there_is_named_and_the_others_are_installed(tmp_path):
    code, stderr, calls = install(tmp_path, unknown="munge", update_code=100)
    assert code == 0
    assert "warning: --system-packages: apt-get could not install: munge\n" in stderr
    assert "update failed" in stderr
    each = [f"{INSTALL} {name}" for name in ("slurmd", "munge", "chromium")]
    assert calls == ["-qq update", f"{INSTALL} slurmd munge chromium", *each]


@pytest.mark.parametrize("missing", [{"user_id": 1000}, {"has_apt_get": False}])
def test_without_root_or_apt_get_the_tests_run_all_the_same(missing, tmp_path):
    code, stderr, calls = install(tmp_path, **missing)
    assert (code, calls) == (0, [])
    assert "found no root or no apt-get; not installed: slurmd munge chromium" in stderr
