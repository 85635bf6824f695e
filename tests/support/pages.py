"""The pages that people read: README, docs/ and their like, taken apart for the tests."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests/README.md"]
}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'EOF'\n.*?^EOF$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"(?:\w+=\S* )*(launch/local\.sh|mnist-dist|sbatch|\S*python -m mnist_dist\.\w+)( .*)?"
)


def find_blocks(page: str, *languages: str) -> list[str]:
    """Returns the fenced blocks of a page in these languages."""
    found = _FENCE.findall(PAGES[page])
    return [textwrap.dedent(text) for _, name, text in found if name in languages]


def find_code(page: str) -> list[str]:
    """Returns the code within the lines of a page."""
    return re.findall(r"`([^`]+)`", _FENCE.sub("", PAGES[page]))


def find_lines(page: str) -> list[str]:
    """Returns the lines of a page's shell blocks, and its code within lines."""
    shell = _HEREDOC.sub("", "".join(find_blocks(page, "sh", "")))
    within = [" ".join(code.split()) for code in find_code(page)]
    return shell.replace("\\\n", "").splitlines() + within


def find_commands() -> Iterator[tuple[str, ...]]:
    """Yields every command of ours: a verb, and its arguments with its script's."""
    for page in PAGES:
        for found in filter(None, map(_COMMAND.fullmatch, find_lines(page))):
            text = (found[2] or "").replace("=RANK", "=0")
            text = text.replace("$SLURM_ARRAY_TASK_ID", "1")
            arguments = shlex.split(text, comments=True)
            if found[1] == "launch/local.sh":
                yield "train", "--model_dir=runs/mnist", *arguments
            elif "launch/slurm.sbatch" in arguments:
                script = arguments.index("launch/slurm.sbatch")
                is_array = any(a.startswith("--array") for a in arguments[:script])
                model_dir = f"--model_dir=runs/slurm{'/1' * is_array}"
                yield "train", model_dir, *arguments[script + 1 :]
            elif "..." not in text and any(word.startswith("--") for word in arguments):
                module = found[1].rpartition("mnist_dist.")
                yield (*([module[2]] if module[1] else []), *arguments)


def find_anchors(page: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", PAGES[page]), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}
