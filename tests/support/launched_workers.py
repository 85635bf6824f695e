"""The processes of the workers that a launcher has started."""

import pathlib


def workers_of(launcher):
    """Process numbers of a launcher's workers that are up."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (path / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        state, parent, *_ = rest.split()
        # absl gives a process its program's name.
        if name.endswith("(train.py") and state != "Z" and int(parent) == launcher.pid:
            found.add(int(path.name))
    return found
