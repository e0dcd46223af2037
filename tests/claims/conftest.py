"""Claims train what the store lacks: on all cores, from the first fixture on."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def all_cores():
    import torch

    torch.set_num_threads(os.cpu_count())
