from mnist_dist.training.pacing import MAX_GROWTH, SECONDS_PER_CALL, Pacer


def run(pacer, *, seconds_per_step, num_calls):
    """Steps of each call, on a device that takes so long for a step."""
    steps = []
    for _ in range(num_calls):
        steps.append(pacer.steps)
        pacer.measure(pacer.steps, pacer.steps * seconds_per_step)
        pacer.take(pacer.wish)
    return steps


def test_calls_grow_to_the_time_they_are_to_take():
    pacer = Pacer(steps_per_loop=0, max_steps=4096)
    steps = run(pacer, seconds_per_step=0.001, num_calls=6)
    assert steps[0] == 1
    assert steps[1] == MAX_GROWTH
    assert abs(steps[-1] * 0.001 - SECONDS_PER_CALL) < 0.01


def test_calls_shrink_when_steps_become_slow_but_take_one_at_least():
    pacer = Pacer(steps_per_loop=0, max_steps=4096)
    run(pacer, seconds_per_step=0.0001, num_calls=8)
    assert run(pacer, seconds_per_step=10.0, num_calls=3)[1:] == [1, 1]


def test_calls_take_no_more_than_fits():
    pacer = Pacer(steps_per_loop=0, max_steps=100)
    assert run(pacer, seconds_per_step=1e-9, num_calls=6)[-1] == 100


def test_fixed_number_stays():
    pacer = Pacer(steps_per_loop=7, max_steps=7)
    assert run(pacer, seconds_per_step=1.0, num_calls=4) == [7] * 4


def test_workers_take_what_the_chief_wishes():
    chief, other = (Pacer(steps_per_loop=0, max_steps=4096) for _ in range(2))
    chief.measure(1, 0.1)
    other.measure(1, 0.3)
    for pacer in (chief, other):
        pacer.take(chief.wish)
    assert chief.steps == other.steps == 5
