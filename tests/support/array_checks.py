"""What tests of arrays share."""


def assert_same_bytes(found, expected):
    """Named arrays are the same: names, dtypes, shapes and every bit."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name
