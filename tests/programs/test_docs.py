"""README, docs/ and their like, held against the code: commands, links, names, Python."""

import importlib.util
import json
import re
import subprocess
import sys
import types

import pytest
from pages import (
    PAGES,
    ROOT,
    find_anchors,
    find_blocks,
    find_code,
    find_commands,
    find_lines,
)

import mnist_dist
from mnist_dist.__main__ import VERBS

COMMANDS = sorted(set(find_commands()))

# For each command, in a fork: what its verb does before it looks at files; then the
# settings of the run that `train` makes, if it makes one.
PARSER = """
import importlib, json, os, sys, traceback
import numpy, PIL.Image
import mnist_dist.training.options
from mnist_dist.cli import program

def parse(verb, *arguments):
    arguments, rest = list(arguments), list(arguments)
    if verb == "launch":
        from mnist_dist import launch
        arguments, rest = launch.split_command(arguments)
    if verb == "doctor" or "--verb=doctor" in arguments:
        from mnist_dist.cli import doctor_flags
        if verb == "launch":
            program.parse([verb, *arguments])
        doctor_flags.parse(rest)
        return None
    if verb != "train":
        module = importlib.import_module(f"mnist_dist.{verb}")
        words = program.parse([verb, *arguments])[1:]
        if verb in ("weights", "predict"):
            module.check_flags(words)
        else:
            assert not words, words
            if verb != "launch":
                module.check_flags()
    if verb not in ("train", "launch"):
        return None
    from mnist_dist.cli import train_flags
    options = train_flags.parse(rest)
    settings, plan = options.values(), options.plan(60_000)
    settings["steps"] = plan.total_steps
    settings["kept"] = [
        plan.total_steps - i * plan.checkpoint_interval
        for i in range(plan.max_to_keep)
    ]
    return settings

for command in json.load(sys.stdin):
    if os.fork():
        os.wait()
        continue
    try:
        result = {"settings": parse(*command)}
        assert "tensorflow" not in sys.modules
    except BaseException:
        result = {"error": traceback.format_exc()}
    print(json.dumps(result), flush=True)
    os._exit(0)
"""
# Two commands of one run may differ in these.
MOMENTARY = (
    "restore",
    "overwrite",
    "dry_run",
    "worker_hosts",
    "task_index",
    "num_gpus",
)


@pytest.fixture(scope="module")
def parsed():
    """Settings, None or an error for each command."""
    commands = [command for command in COMMANDS if "--help" not in command]
    result = subprocess.run(
        [sys.executable, "-c", PARSER],
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    return dict(zip(commands, map(json.loads, lines), strict=True))


@pytest.fixture(scope="module")
def runs(parsed):
    """What `train` is told of each directory: the settings of every command."""
    found = {}
    for result in parsed.values():
        if settings := result.get("settings"):
            found.setdefault(settings["model_dir"], []).append(settings)
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_is_accepted(command, parsed):
    assert command[0] in VERBS
    if "--help" not in command:
        assert "error" not in parsed[command], parsed[command]["error"]


def test_commands_are_found():
    assert {verb for verb, *_ in COMMANDS} == VERBS.keys()
    assert len(COMMANDS) >= 45
    assert (ROOT / "launch" / "local.sh").stat().st_mode & 0o111


def test_no_two_trainings_meet_in_one_directory(runs):
    for model_dir, commands in runs.items():
        for settings in commands:
            for name, value in settings.items():
                if name not in MOMENTARY:
                    assert value == commands[0][name], (model_dir, name)


def test_steps_that_are_named_are_there(runs):
    text = "\n".join(PAGES.values())
    named = re.findall(r"(runs/\w+)/(?:export/|checkpoints/ckpt-)(\d+)", text)
    assert len(set(named)) >= 2
    for model_dir, step in named:
        assert int(step) == runs[model_dir][0]["steps"]
    reverts = [c for c in COMMANDS if c[:2] == ("weights", "revert")]
    assert reverts
    for command in reverts:
        flags = dict(flag.removeprefix("--").split("=") for flag in command[2:])
        assert int(flags["step"]) in runs[flags["model_dir"]][0]["kept"][1:]


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_name_what_is_there(page):
    for line in find_lines(page):
        if script := re.match(r"(?:\S*python )?(tools/\S+\.(?:py|sh))( .*)?$", line):
            source = (ROOT / script[1]).read_text()
            for flag in re.findall(r"--(\w+)=", script[2] or ""):
                assert script[1].endswith(".sh") or f'"{flag}"' in source, line
        if line.startswith("kubectl apply"):
            (path,) = re.findall(r" -[fk] (\S+)", line)
            assert (ROOT / path).exists(), line


@pytest.mark.parametrize("page", PAGES)
def test_shell_is_well_formed(page):
    text = "".join(find_blocks(page, "sh", ""))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_are_there(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in find_anchors(str(target.relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_tests_that_are_named_are_there(page):
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for code in find_code(page):
        if re.fullmatch(r"(mnist_dist|tests|tools|launch)/[\w./-]+", code):
            assert (ROOT / code).exists(), code
        if re.fullmatch(r"test_\w+", code):
            assert f"def {code}(" in tests, code
    for diagram in find_blocks(page, "mermaid"):
        for path in re.findall(r"\b(\w+/\w+\.py)\b", diagram):
            assert (ROOT / "mnist_dist" / path).exists(), path


def test_every_page_is_linked_from_the_readme_or_for_contributors():
    text = PAGES["README.md"] + PAGES["CONTRIBUTING.md"]
    linked = set(re.findall(r"\]\(([^)#\s]+)", text))
    assert linked >= PAGES.keys() - {"README.md"}


def tree_names():
    (tree,) = [b for b in find_blocks("docs/architecture.md", "text") if "cli/" in b]
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            yield folder + name
        else:
            folder = name
            yield name


def test_annotated_tree_is_the_tree():
    named = set(tree_names())
    for name in named:
        assert (ROOT / name).exists(), name
    for path in (ROOT / "mnist_dist").iterdir():
        if path.name != "__pycache__":
            slash = "/" if path.is_dir() else ""
            assert f"mnist_dist/{path.name}{slash}" in named


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles(page):
    for block in find_blocks(page, "python"):
        compile(block, page, "exec")


def test_page_of_the_python_interface_is_current():
    path = ROOT / "tools" / "generate_api.py"
    spec = importlib.util.spec_from_file_location("generate_api", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.create_page(), (
        "docs/api.md is not current: run python tools/generate_api.py"
    )


class _Stub(types.ModuleType):
    """A module that notes the calls of whatever is asked of it."""

    def __init__(self, name, calls):
        super().__init__(name)
        self._calls = calls

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self._calls.append(name)
            return self

        return call


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_metric_writers_of_the_page_take_a_run(tracker, monkeypatch):
    (text,) = [
        block
        for block in find_blocks("docs/monitoring.md", "python")
        if f"import {tracker}" in block
    ]
    calls = []

    def train_model(*, writers, **options):
        (writer,) = writers
        point = {"step": 5, "epoch": 0.5, "wall_time": 1.0}
        writer.write_text("settings", "| a |", step=1)
        writer.write_scalars("train", {"loss": 1.0}, details={}, **point)
        writer.flush()
        writer.close()

    stub = _Stub(tracker, calls)
    stub.summary = {}
    monkeypatch.setitem(sys.modules, tracker, stub)
    monkeypatch.setattr(mnist_dist, "train_model", train_model)
    exec(compile(text, tracker, "exec"), {})
    assert (
        calls[-2:]
        == {
            "wandb": ["log", "finish"],
            "mlflow": ["log_metrics", "end_run"],
        }[tracker]
    )


def find_fields(heading):
    """Names in the first column of a section's table in monitoring.md, with their row."""
    section = (
        PAGES["docs/monitoring.md"].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    )
    for row in re.findall(r"^\| (`.*)$", section, re.MULTILINE):
        for name in re.findall(r"`([\w.]+)`", row.split(" | ")[0]):
            yield name, row


def test_example_of_an_own_model_trains_and_every_field_is_explained(
    fork_server, tmp_path
):
    """The model and the script of make_it_yours.md, as a reader would run them."""
    model, script = find_blocks("docs/make_it_yours.md", "python")
    (tmp_path / "mine.py").write_text(model)
    process = fork_server.start("-c", script, folder=tmp_path)
    assert process.wait() == 0, process.stderr()
    run = tmp_path / "runs" / "arrays"
    assert (run / "checkpoints" / "ckpt-20.index").exists()

    lines = (run / "metrics.jsonl").read_text().splitlines()
    for kind in ("train", "eval"):
        record = next(r for r in map(json.loads, lines) if r["kind"] == kind)
        rows = find_fields("metrics.jsonl")
        assert set(record) == {
            n for n, row in rows if row.split(" | ")[1] in ("both", kind)
        }
    config = json.loads((run / "config.json").read_text())
    resolved = {f"resolved.{name}" for name in config.pop("resolved")}
    assert {n for n, _ in find_fields("config.json")} == resolved | set(config)
