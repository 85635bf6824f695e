"""Which kernels a run that goes on computes with."""

import json

import pytest

from mnist_dist.training.recorded_kernels import use_recorded_kernels


def environment(directory, *, before=None, imported=()):
    environ = dict(before or {})
    use_recorded_kernels(str(directory), environ=environ, imported=imported)
    return environ


def save(directory, **resolved):
    config = {"settings": {}, "flags": {}, "resolved": resolved}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("recorded", "expected"), [(True, "1"), (False, "0")])
def test_run_goes_on_with_the_kernels_that_it_had(tmp_path, recorded, expected):
    save(tmp_path, onednn=recorded)
    assert environment(tmp_path) == {"TF_ENABLE_ONEDNN_OPTS": expected}


def test_what_the_user_says_wins(tmp_path):
    save(tmp_path, onednn=True)
    said = {"TF_ENABLE_ONEDNN_OPTS": "0"}
    assert environment(tmp_path, before=said) == said


def test_nothing_changes_where_nothing_is_recorded_or_tensorflow_has_decided(tmp_path):
    assert environment(tmp_path) == {}
    save(tmp_path)
    assert environment(tmp_path) == {}
    save(tmp_path, onednn="yes")
    assert environment(tmp_path) == {}
    save(tmp_path, onednn=True)
    assert environment(tmp_path, imported=["tensorflow"]) == {}
    (tmp_path / "config.json").write_text("{")
    assert environment(tmp_path) == {}
