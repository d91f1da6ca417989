"""Feature maps of convolutional networks: the contract of all feature maps."""

import contract
import pytest
import registry


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with registry.quick_compilation():
        yield


@pytest.mark.long_cases(
    "jit_and",
    "retrace",
    "reduced-image-vmap",
    "reduced-image-grad",
    *contract.SLOW_CHECKS,
)
@pytest.mark.parametrize("rule", contract.CHECKS)
@pytest.mark.parametrize("case", registry.CONVOLUTIONS, ids=str)
def test_contract(rule, case):
    getattr(contract, rule)(case)
