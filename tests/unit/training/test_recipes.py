"""launch/recipes: flag files for `train`."""

import glob
import os

import pytest

from mnist_dist.training.options import FIELDS

RECIPES = sorted(
    glob.glob(
        os.path.join(os.path.dirname(__file__), "../../../launch/recipes/*.flags")
    )
)


@pytest.mark.parametrize("path", RECIPES, ids=os.path.basename)
def test_recipe_names_options_of_train_and_none_twice(path):
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file if not line.startswith("#")]
    names = []
    for line in lines:
        name, equals, _ = line.removeprefix("--").partition("=")
        assert line.startswith("--"), line
        names.append(name if equals else name.removeprefix("no"))
    assert len(names) == len(set(names))
    assert set(names) <= set(FIELDS)


def test_there_are_recipes():
    assert len(RECIPES) >= 3
