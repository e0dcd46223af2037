"""Claims train what the store lacks: on all cores, from the first fixture on."""

import os

import pytest

from course_lib import store


@pytest.fixture(scope="session", autouse=True)
def all_cores():
    import torch

    torch.set_num_threads(os.cpu_count())


@pytest.fixture(scope="session", autouse=True)
def left_out():
    """`test --minutes` says which artifacts it had no time for: what needs them is skipped."""
    late, build = os.environ.get("COURSE_LEFT_OUT", "").split(), store._build

    def refuse(recipe, *rest):
        if recipe.name in late:
            pytest.skip(f"there was no time to train {recipe.name}")
        build(recipe, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_build", refuse)
        yield
