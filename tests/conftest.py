import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same cases on every run: a suite that gates a landing must not depend on luck.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def seed_everything() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


seed_everything()  # some parameters are drawn when a module is imported: alike in every process


@pytest.fixture(autouse=True)
def _seeds() -> None:
    seed_everything()
