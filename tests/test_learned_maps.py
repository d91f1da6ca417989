"""The contract of maps that learn from data, maps of maps, graphs and text."""

import contract
import pytest
import registry

# Known faults: whether the check always shows them. The root of a landmark kernel turns
# with its rounding, on images with XLA's optimizations and not without.
FAULTS = {
    ("nystrom-biased", "jit_and_vmap_over_keys_equal_a_loop"): True,
    ("nystrom-image", "jit_and_vmap_over_keys_equal_a_loop"): False,
}


def grid():
    for case in registry.LEARNED:
        for check in contract.CHECKS:
            fault, marks = (case.name, check), []
            if fault in FAULTS:
                reason = "rounding of a root"
                marks = [pytest.mark.xfail(strict=FAULTS[fault], reason=reason)]
            yield pytest.param(case, check, marks=marks, id=f"{case}-{check}")


@pytest.mark.long_cases(
    "m-biased-str",
    "m-image-str",
    "jit_and",
    "no_retrace",
    "reduced-dtypes",
    "biased-dtypes",
    *contract.SLOW_CHECKS,
)
@pytest.mark.quick_cases("sparse-exp")
@pytest.mark.parametrize(("case", "check"), list(grid()))
def test_contract(case, check):
    getattr(contract, check)(case)
