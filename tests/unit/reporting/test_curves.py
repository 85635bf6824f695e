"""Curves of a report, as numbers."""

from mnist_dist.reporting.curves import MAX_POINTS, thin_out


def test_long_curves_are_thinned_out_evenly_to_their_end():
    for count in (0, 1, 2, MAX_POINTS, MAX_POINTS + 1, 10 * MAX_POINTS + 3):
        records = [{"step": step} for step in range(count)]
        kept = thin_out(records)
        assert len(kept) <= MAX_POINTS + 1
        assert kept[-1:] == records[-1:]
        assert kept[:1] == records[:1]
        if count <= MAX_POINTS:
            assert kept == records
