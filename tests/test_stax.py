"""Networks as data: text, JSON, equality, and arguments that make no sense."""

import dataclasses

import numpy as np
import pytest

from jax_ntk_sketch import stax

NETS = [
    stax.serial(),
    stax.Identity(),
    stax.Dense(3),
    stax.serial(stax.Dense(512, W_std=2**0.5, b_std=0.1), stax.Relu(), stax.Dense(1)),
    stax.serial(stax.serial(stax.Dense(7, 0.0, 0.0)), stax.Identity(), stax.Relu()),
]


@pytest.mark.parametrize("net", NETS, ids=repr)
def test_text_and_json_round_trip(net):
    assert eval(repr(net), {"stax": stax}) == net
    again = stax.from_json(stax.to_json(net))
    assert again == net and hash(again) == hash(net) and type(again) is type(net)


def test_different_networks_differ():
    assert len(set(NETS)) == len(NETS)
    assert stax.Dense(3) != stax.Dense(3, b_std=0.0)
    assert stax.serial(stax.Relu()) != stax.Relu()


def test_records_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        stax.Dense(3).out_dim = 4  # type: ignore[misc]


def test_numbers_of_numpy_are_plain_numbers():
    dense = stax.Dense(np.int64(3), np.float32(0.5), np.float64(0.25))
    assert dense == stax.Dense(3, 0.5, 0.25)
    assert [type(v) for v in dataclasses.astuple(dense)] == [int, float, float]


def test_walk_opens_serial_up():
    inner = stax.serial(stax.Relu(), stax.serial(stax.Identity()))
    assert list(stax.walk(stax.serial(stax.Dense(2), inner))) == [
        stax.Dense(2),
        stax.Relu(),
        stax.Identity(),
    ]


@pytest.mark.parametrize(
    "build, error, match",
    [
        (lambda: stax.Dense(0), ValueError, "out_dim must be a positive integer"),
        (lambda: stax.Dense(True), ValueError, "out_dim must be a positive integer"),
        (lambda: stax.Dense(2.5), TypeError, "out_dim must be an integer"),
        (lambda: stax.Dense(2, -1.0), ValueError, "W_std must be finite and >= 0"),
        (lambda: stax.Dense(2, np.nan), ValueError, "W_std must be finite and >= 0"),
        (lambda: stax.Dense(2, "1"), TypeError, "W_std must be a number"),
        (lambda: stax.Dense(2, 1.0, np.inf), ValueError, "b_std must be finite"),
        (lambda: stax.Dense(2, 1.0, [1, 2]), TypeError, "b_std must be a number"),
        (
            lambda: stax.serial((lambda: 0, lambda: 0, lambda: 0)),
            TypeError,
            "neural_tangents.stax are closures",
        ),
        (lambda: stax.to_json("net"), TypeError, "net must be a layer record"),
        (lambda: stax.from_json("{"), ValueError, "Expecting"),
        (lambda: stax.from_json('{"layer": "Denze"}'), ValueError, "unknown layer"),
        (
            lambda: stax.from_json('{"layer": "Relu", "slope": 1}'),
            ValueError,
            "Relu has no argument 'slope'",
        ),
        (
            lambda: stax.from_json('{"layer": "Dense"}'),
            ValueError,
            "bad arguments of Dense",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, match):
    with pytest.raises(error, match=match):
        build()
