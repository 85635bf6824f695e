from mnist_dist.training.control import MAX_GROWTH, SECONDS_PER_CALL, Control


def create(*, steps_per_loop=0, max_steps=4096, num_workers=1, is_stopping=False):
    return Control(
        steps_per_loop=steps_per_loop,
        max_steps=max_steps,
        num_workers=num_workers,
        is_stop_requested=lambda: is_stopping,
    )


def run(control, *, seconds_per_step, num_calls):
    """Steps of each call, on a device that takes so long for a step."""
    steps = []
    for _ in range(num_calls):
        steps.append(control.num_steps)
        control.update(
            control.num_steps,
            control.num_steps * seconds_per_step,
            agreed=tuple(control.values()),
        )
    return steps


def test_calls_grow_to_the_time_they_are_to_take():
    steps = run(create(), seconds_per_step=0.001, num_calls=6)
    assert steps[0] == 1
    assert steps[1] == MAX_GROWTH
    assert abs(steps[-1] * 0.001 - SECONDS_PER_CALL) < 0.01


def test_calls_shrink_when_steps_become_slow_but_take_one_at_least():
    control = create()
    run(control, seconds_per_step=0.0001, num_calls=8)
    assert run(control, seconds_per_step=10.0, num_calls=3)[1:] == [1, 1]


def test_calls_take_no_more_than_fits():
    control = create(max_steps=100)
    assert run(control, seconds_per_step=1e-9, num_calls=6)[-1] == 100


def test_fixed_number_stays():
    control = create(steps_per_loop=7, max_steps=7)
    assert run(control, seconds_per_step=1.0, num_calls=4) == [7] * 4


def test_workers_take_the_chiefs_number_one_call_after_it_is_known():
    chief, other = (create(num_workers=2) for _ in range(2))
    for seconds in (0.1, 0.1):
        agreed = (0.0, chief.values()[1])
        chief.update(1, seconds, agreed=agreed)
        other.update(1, 3 * seconds, agreed=agreed)
    assert chief.num_steps == other.num_steps == 5


def test_all_workers_stop_after_the_call_that_carried_the_request():
    asked, other = create(num_workers=2, is_stopping=True), create(num_workers=2)
    assert not asked.is_stopping
    assert asked.values()[0] == 1.0
    agreed = (asked.values()[0] + other.values()[0], asked.values()[1])
    for control in (asked, other):
        control.update(1, 0.1, agreed=agreed)
        assert control.is_stopping


def test_one_worker_alone_stops_at_once():
    assert create(is_stopping=True).is_stopping
    assert not create().is_stopping
