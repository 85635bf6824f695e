"""Options as keyword arguments, types and all."""

import functools
import inspect
from collections.abc import Callable, Set
from typing import ParamSpec, TypeVar

from mnist_dist.training.options import TrainingOptions

Keywords = ParamSpec("Keywords")
Result = TypeVar("Result")


def takes_keywords_of(
    options: Callable[Keywords, TrainingOptions],
) -> Callable[
    [Callable[[TrainingOptions, Set[str]], Result]], Callable[Keywords, Result]
]:
    """Has a function of options take them as keyword arguments, types and all.

    The function also gets the names of those that were given.
    """

    def decorate(function: Callable[[TrainingOptions, Set[str]], Result]):
        @functools.wraps(function)
        def call(*args: Keywords.args, **kwargs: Keywords.kwargs) -> Result:
            return function(options(*args, **kwargs), kwargs.keys())

        signature = inspect.signature(options)
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            return_annotation=inspect.signature(function).return_annotation
        )
        return call

    return decorate
