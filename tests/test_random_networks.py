"""Random networks, methods, kinds of arrays and dtypes, and what holds for all."""

import pytest
import random_networks


@pytest.mark.long
@pytest.mark.parametrize("number", range(100))
def test_invariants(number):
    random_networks.check(number)
