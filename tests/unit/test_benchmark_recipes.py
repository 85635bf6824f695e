"""tools/benchmark_recipes.py: which seeds, and what is said of them."""

import benchmark_recipes
import pytest


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1-3", [1, 2, 3]), ("4", [4]), ("1,4,7-8", [1, 4, 7, 8])],
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert benchmark_recipes.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match=r"found no seed|invalid literal"):
        benchmark_recipes.parse_seeds(text)


def test_summary_has_the_mean_of_the_accuracies_and_the_median_of_the_seconds():
    results = [
        {"seed": 1, "accuracy": 0.990, "seconds": 10.0},
        {"seed": 2, "accuracy": 0.992, "seconds": 30.0},
        {"seed": 3, "accuracy": 0.991, "seconds": 11.0},
    ]
    assert benchmark_recipes.summarize(results) == (
        "3 seeds: mean 99.100%, standard deviation 0.100%, 99.00% to 99.20%; "
        "median 11.0 s (10.0-30.0)"
    )
