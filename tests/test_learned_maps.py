"""The contract of maps that learn from data, maps of maps, graphs and text."""

import contract
import pytest
import registry

# Known faults, each with the check that shows it. The root of a landmark kernel turns
# with its rounding, which differs between machines.
FAULTS = {
    ("nystrom-biased", "jit_and_vmap_over_keys_equal_a_loop"): "rounding of a root",
    ("nystrom-image", "jit_and_vmap_over_keys_equal_a_loop"): "rounding of a root",
}


def grid():
    for case in registry.LEARNED:
        for check in contract.CHECKS:
            reason = FAULTS.get((case.name, check))
            marks = [pytest.mark.xfail(strict=False, reason=reason)] if reason else []
            yield pytest.param(case, check, marks=marks, id=f"{case}-{check}")


@pytest.mark.long_cases(
    "m-biased-str",
    "m-image-str",
    "jit_and",
    "no_retrace",
    "reduced-dtypes",
    "biased-dtypes",
)
@pytest.mark.parametrize(("case", "check"), list(grid()))
def test_contract(case, check):
    getattr(contract, check)(case)
