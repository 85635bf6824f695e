import io
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorflow import make_ndarray

from mnist_dist.errors import InputError
from mnist_dist.progress import Progress
from mnist_dist.summaries import RunLog


def write(log, steps):
    for step in steps:
        log.write_train(
            step=step, epoch=step / 10, loss=1 / step, accuracy=0.5, learning_rate=0.1
        )
        if step % 2 == 0:
            log.write_eval(
                step=step,
                epoch=step / 10,
                loss=2 / step,
                accuracy=0.25,
                split="test",
                num_examples=8,
            )


def points(path, tag):
    accumulator = EventAccumulator(str(path)).Reload()
    return [
        (e.step, float(make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)
    ]


def without_times(path):
    records = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    assert all(record.pop("time") > 0 for record in records)
    return records


def test_resumed_log_equals_an_undisturbed_one(tmp_path):
    whole = RunLog(str(tmp_path / "whole"))
    write(whole, range(1, 9))
    whole.close()
    first = RunLog(str(tmp_path / "parts"))
    write(first, range(1, 7))
    first.close()
    second = RunLog(str(tmp_path / "parts"), resume_step=4)
    assert second.has_eval(4)
    assert not second.has_eval(6)
    write(second, range(5, 9))
    second.close()
    assert without_times(tmp_path / "parts") == without_times(tmp_path / "whole")
    for folder, tag in [
        ("train", "loss"),
        ("train", "learning_rate"),
        ("eval", "loss"),
    ]:
        found = points(tmp_path / "parts" / folder, tag)
        assert found == points(tmp_path / "whole" / folder, tag)
        assert len(found) == (8 if folder == "train" else 4)


def test_line_that_a_kill_cut_short_is_dropped(tmp_path):
    log = RunLog(str(tmp_path))
    write(log, [1, 2])
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    RunLog(str(tmp_path), resume_step=5).close()
    assert [r["step"] for r in without_times(tmp_path)] == [1, 2, 2]


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path):
    text = '{"step": 1}\ngarbage\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics.jsonl: line 2"):
        RunLog(str(tmp_path), resume_step=5)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_values_that_are_not_finite_stay_strict_json(tmp_path):
    log = RunLog(str(tmp_path))
    log.write_train(step=1, epoch=0.1, loss=float("nan"))
    log.close()
    assert without_times(tmp_path)[0]["loss"] is None


class Terminal(io.StringIO):
    def isatty(self):
        return True


def update(progress, step):
    progress.update(
        step=step, epoch=0.5, loss=0.25, accuracy=0.5, images_per_second=1000
    )


def test_progress_is_one_line_on_a_terminal_and_few_elsewhere():
    now = [0.0]
    for stream in (Terminal(), io.StringIO()):
        progress = Progress(
            total_steps=100, first_step=0, stream=stream, clock=lambda: now[0]
        )
        for step in range(1, 51):
            now[0] += 1.0
            update(progress, step)
        progress.message("evaluated")
        progress.close()
        text = stream.getvalue()
        assert "step 50/100" in text
        assert "0:50 left" in text
        assert "evaluated\n" in text
        if stream.isatty():
            assert text.count("\n") == 2
        else:
            assert "\r" not in text
            assert text.count("\n") == 5 + 1 + 1


def test_closed_pipe_does_not_end_the_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress = Progress(total_steps=10, first_step=0, stream=Closed())
    update(progress, 1)
    progress.close()
