"""Where the time goes, against a clock that the test sets."""

from mnist_dist.training import stopwatch


def test_activities_and_the_rest_are_the_time_that_went_by(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    watch = stopwatch.Stopwatch()
    with watch.measuring("input"):
        now[0] += 2
    watch.add("step", 3)
    now[0] += 4
    with watch.measuring("input"):
        now[0] += 1
    assert watch.take() == {"input": 3.0, "step": 3, "host": 1.0}
    now[0] += 5
    assert watch.take() == {"host": 5.0}
