import json
import os

import numpy as np
import pytest
from run_factory import create_run, save_data_set

from mnist_dist.errors import InputError
from mnist_dist.inference.trained_model import load_trained_model, read_checkpoint
from mnist_dist.run.config import load_run_config

DATA = "data-00000-of-00001"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return save_data_set(tmp_path_factory.mktemp("data"))


def weights_of(arrays, source):
    return {
        name.removeprefix(source): a for name, a in arrays.items() if source in name
    }


def assert_holds(trained, expected):
    found = weights_of(trained.state.to_arrays(), "model/")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("num_replicas", [None, 1, 3])
@pytest.mark.parametrize("use_ema", [None, True, False])
def test_weights_are_the_checkpoints_under_any_strategy(
    num_replicas, use_ema, tmp_path, data_dir, create_strategy
):
    model = "custom_models:create_mixed"
    written = create_run(tmp_path, model=model, data_dir=data_dir, steps=(1, 2))
    if num_replicas is None:
        trained = load_trained_model(str(tmp_path), use_ema=use_ema)
    else:
        with create_strategy(num_replicas).scope():
            trained = load_trained_model(str(tmp_path), use_ema=use_ema)
    expected = weights_of(written[2], "model/" if use_ema is False else "ema/")
    assert "norm/moving_variance" in expected
    assert_holds(trained, expected)
    assert trained.step == 2
    assert trained.uses_ema is (use_ema is not False)
    assert int(trained.state.step.numpy()) == 2
    assert trained.checkpoint == f"{tmp_path}/checkpoints/ckpt-2"


def test_latest_best_or_a_step_wherever_it_lies(tmp_path, data_dir):
    written = create_run(tmp_path, data_dir=data_dir, steps=(3, 10), best_step=3)
    for checkpoint, step in (("latest", 10), ("best", 3), ("3", 3), ("10", 10)):
        trained = load_trained_model(str(tmp_path), checkpoint=checkpoint)
        assert_holds(trained, weights_of(written[step], "ema/"))
    for part in (DATA, "index"):
        os.remove(tmp_path / "checkpoints" / f"ckpt-3.{part}")
    trained = load_trained_model(str(tmp_path), checkpoint="3")
    assert trained.checkpoint == f"{tmp_path}/best/ckpt-3"


def test_run_without_average_gives_its_weights(tmp_path, data_dir):
    written = create_run(tmp_path, data_dir=data_dir, with_ema=False)
    trained = load_trained_model(str(tmp_path))
    assert not trained.uses_ema
    assert_holds(trained, weights_of(written[1], "model/"))
    with pytest.raises(InputError, match=r"--use_ema: .*ckpt-1 holds no moving aver"):
        load_trained_model(str(tmp_path), use_ema=True)


def test_damaged_newest_is_skipped_aloud_and_a_damaged_step_refused(
    tmp_path, data_dir, caplog
):
    written = create_run(tmp_path, data_dir=data_dir, steps=(1, 2))
    os.truncate(tmp_path / "checkpoints" / f"ckpt-2.{DATA}", 100)
    trained = load_trained_model(str(tmp_path))
    assert_holds(trained, weights_of(written[1], "ema/"))
    assert "is damaged and skipped" in caplog.text
    assert "ckpt-2: " in caplog.text
    with pytest.raises(InputError, match="ckpt-2 is damaged: "):
        load_trained_model(str(tmp_path), checkpoint="2")
    os.remove(tmp_path / "checkpoints" / "ckpt-1.index")
    with pytest.raises(
        InputError, match=r"all 2 checkpoints are damaged; .*ckpt-2.*ckp"
    ):
        load_trained_model(str(tmp_path))


def test_latest_and_a_step_are_looked_for_in_best_too(tmp_path, data_dir):
    written = create_run(tmp_path, data_dir=data_dir, steps=(1, 2), best_step=2)
    (data,) = (tmp_path / "checkpoints").glob("ckpt-2.data-*")
    data.write_bytes(data.read_bytes()[:100])
    for choice in ("latest", "2"):
        found = load_trained_model(str(tmp_path), checkpoint=choice)
        assert found.checkpoint == f"{tmp_path}/best/ckpt-2"
    (tmp_path / "checkpoints" / "ckpt-2.index").unlink()
    data.unlink()
    assert load_trained_model(str(tmp_path)).step == 2
    assert written.keys() == {1, 2}


def test_what_is_not_there_is_named(tmp_path, data_dir):
    with pytest.raises(InputError, match=r"found no .*/nowhere/config\.json"):
        load_trained_model(f"{tmp_path}/nowhere")
    create_run(tmp_path / "run", data_dir=data_dir, steps=(1, 2))
    with pytest.raises(InputError, match=r"found 7, expected .* steps in .*: 2, 1"):
        load_trained_model(f"{tmp_path}/run", checkpoint="7")
    with pytest.raises(InputError, match="best: found no checkpoint"):
        load_trained_model(f"{tmp_path}/run", checkpoint="best")


def test_checkpoint_of_another_model_names_the_weights(tmp_path, data_dir):
    create_run(tmp_path, data_dir=data_dir)
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["model"] = "cnn"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError,
        match=r"model/conv_layer_1/bias: found nothing, expected float32 \[32\]",
    ):
        load_trained_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "as JSON"),
        (b"\xff\xfe\x00", "as JSON"),
        (b"[" * 100_000, "as JSON"),
        (b"[]", "as JSON"),
        (b'{"settings": {}}', "no object 'flags'"),
        (b'{"settings": {}, "flags": {}, "resolved": {"image_shape": 3}}', "found: "),
        (None, "found a folder, expected a regular file"),
    ],
)
def test_unreadable_config_is_one_line_that_names_it(content, message, tmp_path):
    if content is None:
        (tmp_path / "config.json").mkdir()
    else:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_run_config(str(tmp_path))
    assert f"{tmp_path}/config.json: " in str(error.value)
    assert message in str(error.value)


def test_model_that_is_gone_is_an_error_of_the_config(tmp_path, data_dir):
    create_run(tmp_path, data_dir=data_dir)
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["model"] = "gone:model"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: --model: cannot load 'gone:m"):
        load_trained_model(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "is_last"),
    [
        ({"total_steps": 2}, True),
        ({"total_steps": 3}, False),
        ({"total_steps": 3, "target_accuracy": 0.5}, True),
        ({"total_steps": 3, "target_accuracy": 0.6}, False),
        ({"total_steps": 3, "patience": 2, "evaluations_since_best": 2}, True),
        ({"total_steps": 3, "patience": 3, "evaluations_since_best": 2}, False),
    ],
)
def test_last_checkpoint_is_known_as_training_knows_it(
    settings, is_last, tmp_path, data_dir
):
    create_run(tmp_path, data_dir=data_dir, steps=(2,), **settings)
    _, arrays = read_checkpoint(str(tmp_path), "latest")
    assert load_run_config(str(tmp_path)).is_last(arrays) is is_last
