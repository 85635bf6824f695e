import pytest

from mnist_dist.cluster.places import Places


def create(num_workers, **options):
    return Places(num_workers, uses_gpus=True, **options)


def gpus(places):
    return [place["CUDA_VISIBLE_DEVICES"] for place in places.used]


def test_as_many_workers_go_on_as_can_share_the_batch_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c,d,e,f")
    places = create(6, min_workers=2, fits=lambda n: 6 % n == 0)
    assert places.give_up(2)
    assert gpus(places) == ["a", "b", "d"]
    assert places.give_up(0)  # one that was over takes its place
    assert gpus(places) == ["b", "d", "e"]
    assert places.give_up(2)
    assert gpus(places) == ["b", "d", "f"]
    assert places.give_up(2)
    assert gpus(places) == ["b", "d"]
    assert not places.give_up(0)
    assert gpus(places) == ["b", "d"]


@pytest.mark.parametrize("min_workers", [None, 3])
def test_none_is_given_up_unless_told(min_workers, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c")
    places = create(3, min_workers=min_workers)
    assert not places.give_up(1)
    assert gpus(places) == ["a", "b", "c"]
