"""Networks as data: text, JSON, equality, and arguments that make no sense."""

import dataclasses
import inspect

import jax.example_libraries.stax
import numpy as np
import pytest

from jax_ntk_sketch import recipes, stax
from jax_ntk_sketch.interop import neural_tangents as jnt

FIRST = ("NCHW", "OIHW", "NCHW")
NETS = [
    stax.serial(),
    stax.Identity(),
    stax.Dense(3),
    stax.serial(stax.Dense(512, W_std=2**0.5, b_std=0.1), stax.Relu(), stax.Dense(1)),
    stax.serial(stax.serial(stax.Dense(7, 0.0, 0.0)), stax.Identity(), stax.Relu()),
    stax.Conv(3, (2,)),
    stax.Conv(3, (3, 2), (1, 2), "SAME", 2**0.5, 0.1, FIRST, dilation=(2, 1)),
    stax.AvgPool((2, 2), (2, 2), "SAME", normalize_edges=True, channel_axis=1),
    stax.serial(stax.SumPool((2, 3, 1), padding="CIRCULAR"), stax.Flatten()),
    stax.serial(stax.LayerNorm(1, eps=1e-3), stax.GlobalAvgPool(channel_axis=1)),
    stax.serial(stax.LayerNorm(), stax.GlobalSumPool()),
    recipes.myrtle(7, b_std=0.1),
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
    assert [type(v) for v in dataclasses.astuple(dense)[:3]] == [int, float, float]


def test_a_class_of_a_user_does_not_replace_ours():
    """Its name has its module in front, in `repr` and in JSON."""

    @dataclasses.dataclass(frozen=True, repr=False)
    class Dense(stax.Layer):
        width: int

    text = stax.to_json(stax.serial(Dense(3), stax.Dense(3)))
    assert stax.from_json(text) == stax.serial(Dense(3), stax.Dense(3))
    assert __name__ in repr(Dense(3)) and repr(stax.Dense(3)) == "stax.Dense(3)"


def test_walk_opens_serial_up():
    inner = stax.serial(stax.Relu(), stax.serial(stax.Identity()))
    assert list(stax.walk(stax.serial(stax.Dense(2), inner))) == [
        stax.Dense(2),
        stax.Relu(),
        stax.Identity(),
    ]


def test_sequences_are_tuples():
    conv = stax.Conv(1, [np.int64(3), 2], np.array([1, 2]), dimension_numbers=[*FIRST])
    assert conv == stax.Conv(1, (3, 2), (1, 2), dimension_numbers=FIRST)
    assert hash(conv) == hash(stax.from_json(stax.to_json(conv)))
    assert [type(v) for v in (*conv.filter_shape, *conv.strides)] == [int] * 4
    assert stax.AvgPool([2], [2]) == stax.AvgPool((2,), (2,))


@pytest.mark.parametrize("depth, convolutions", [(5, 4), (7, 6), (10, 9)])
def test_recipes(depth, convolutions):
    """Myrtle: as many convolutions, one Dense layer, two pools between them."""
    layers = list(stax.walk(recipes.myrtle(depth)))
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds.count("Conv") == kinds.count("Relu") == convolutions
    assert kinds.count("AvgPool") == 2 and kinds[-2:] == ["GlobalAvgPool", "Dense"]
    assert recipes.cntk(3, pool=False) == stax.serial(
        *[stax.Conv(512, (3, 3), None, "SAME", 2**0.5), stax.Relu()] * 3,
        stax.GlobalAvgPool(),
        stax.Dense(10, 2**0.5),
    )


def test_channel_axes():
    assert stax.Conv(1, (2, 2)).channel_axis == -1
    assert stax.Conv(1, (2, 2), dimension_numbers=FIRST).channel_axis == 1
    last = ("NXYC", "XYIO", "NXYC")
    assert stax.Conv(1, (2, 2), dimension_numbers=last).channel_axis == 3


def conv(*args, **kwargs):
    return lambda: stax.Conv(1, *args, **kwargs)


SEQUENCE = "must be a sequence of integers"
LETTERS = "dimension_numbers must be three strings of 4 letters"
LAYOUT = "dimension_numbers must have the batch first, channels second or last"


@pytest.mark.parametrize(
    "build, error, match",
    [
        (conv(3), TypeError, f"Conv: filter_shape {SEQUENCE}"),
        (conv("33"), TypeError, f"Conv: filter_shape {SEQUENCE}"),
        (conv((0, 3)), ValueError, "filter_shape must be an integer >= 1, got 0"),
        (conv((3.0, 3)), TypeError, "filter_shape must be an integer, got 3.0"),
        (conv((3, 3), (0, 1)), ValueError, "strides must be an integer >= 1, got 0"),
        (conv((3, 3), 2), TypeError, f"Conv: strides {SEQUENCE}"),
        (conv((3, 3), (1,)), ValueError, "strides must have 2 entries as filter_shape"),
        (conv((3,), dilation=(0,)), ValueError, "dilation must be an integer >= 1"),
        (conv((3,), dilation=(1, 1)), ValueError, "dilation must have 1 entries"),
        (conv((3,), padding="same"), ValueError, "one of 'VALID', 'SAME', 'CIRCULAR'"),
        (conv((3,), W_std=-1.0), ValueError, "Conv: W_std must be finite and >= 0"),
        (conv((3,), b_std="1"), TypeError, "Conv: b_std must be a number"),
        (lambda: stax.Conv(0, (3,)), ValueError, "out_chan must be an integer >= 1"),
        *[
            (conv((3, 3), dimension_numbers=numbers), ValueError, match)
            for numbers, match in {
                "NHWC": LETTERS,
                ("NHWC", "HWIO"): LETTERS,
                ("NHC", "HIO", "NHC"): LETTERS,
                ("NHWC", "HWIO", "NCHW"): LAYOUT,
                ("CNHW", "OIHW", "CNHW"): LAYOUT,
                ("NHCW", "HWIO", "NHCW"): LAYOUT,
                ("NHWC", "WHIO", "NHWC"): LAYOUT,
                ("NHHC", "HHIO", "NHHC"): LAYOUT,
            }.items()
        ],
        (
            lambda: stax.AvgPool((2, 2), (1, -1)),
            ValueError,
            "AvgPool: strides must be an integer >= 1, got -1",
        ),
        (lambda: stax.SumPool(2), TypeError, f"SumPool: window_shape {SEQUENCE}"),
        (
            lambda: stax.SumPool((2,), padding="REFLECT"),
            ValueError,
            "SumPool: padding must be one of .* got 'REFLECT'",
        ),
        (
            lambda: stax.AvgPool((2,), normalize_edges=1),
            TypeError,
            "normalize_edges must be a bool",
        ),
        (
            lambda: stax.GlobalAvgPool(channel_axis=0),
            ValueError,
            "GlobalAvgPool: channel_axis must not be 0, the batch axis",
        ),
        (lambda: stax.GlobalSumPool(0, True), TypeError, "channel_axis must be an int"),
        (lambda: stax.LayerNorm((1, 0)), ValueError, "must not be 0, the batch axis"),
        (lambda: stax.LayerNorm(1.5), TypeError, "axis must be an integer"),
        (lambda: stax.LayerNorm(eps=0), ValueError, "eps must be finite and > 0"),
        (lambda: recipes.myrtle(6), ValueError, "depth must be one of 5, 7, 10, got 6"),
        (lambda: recipes.cntk(0), ValueError, "depth must be an integer >= 1"),
        (lambda: stax.Dense(0), ValueError, "out_dim must be an integer >= 1"),
        (lambda: stax.Dense(True), ValueError, "out_dim must be an integer >= 1"),
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
        *[
            (build, ValueError, "batch_axis must be 0, got 1; examples lie along")
            for build in (
                lambda: stax.Dense(3, batch_axis=1),
                lambda: stax.AvgPool((2,), batch_axis=1),
                lambda: stax.SumPool((2,), batch_axis=1),
                lambda: stax.GlobalAvgPool(1),
                lambda: stax.GlobalSumPool(1),
                lambda: stax.Flatten(1),
            )
        ],
        (lambda: stax.Flatten(0, 1), ValueError, "batch_axis_out must be 0, got 1"),
        (lambda: stax.Dense(3, channel_axis=0), ValueError, "must not be 0, the batch"),
        (
            lambda: [*stax.serial(stax.Dense(3))],
            TypeError,
            r"Serial: a record is not the triple .* apply_fn, kernel_fn = .*to_stax",
        ),
        (lambda: stax.to_json("net"), TypeError, "net must be a layer record"),
        (lambda: stax.from_json("{"), ValueError, "Expecting"),
        (lambda: stax.from_json("3"), ValueError, "text must be a layer record"),
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


# Arguments that Neural Tangents does not have, which come last.
OURS = {"Aggregate": ["signed"], "Conv": ["dilation"]}


def test_layers_take_the_arguments_of_neural_tangents_in_its_order():
    theirs = jnt.load().stax
    shared = [
        name for name in stax.__all__ if name[0].isupper() and name in dir(theirs)
    ]
    assert len(shared) > 40
    for name in shared:
        if not callable(getattr(stax, name)):
            continue
        ours, nt = (
            list(inspect.signature(getattr(module, name)).parameters.values())
            for module in (stax, theirs)
        )
        names = [p.name for p in nt] + OURS.get(name, [])
        assert [p.name for p in ours] == names, name
        for own, other in zip(ours, nt, strict=False):
            default = getattr(other.default, "name", other.default)
            same = own.default == default or own.name == "to_dense"
            assert same or own.default == default.lower(), (name, own, other)


def test_names_of_other_libraries_are_ours_or_state_the_way_round():
    names = [name for name in dir(jnt.load().stax) if not name.startswith("_")]
    names += [n for n in dir(jax.example_libraries.stax) if n[0].isupper()]
    names += ["Tanh", "Softplus", "MaxPool", "BatchNorm", "Softmax"]
    for name in names:
        if name not in stax.__all__:
            match = f"{name} is not supported: .{{20}}"
            with pytest.raises(AttributeError, match=match):
                getattr(stax, name)
    with pytest.raises(AttributeError, match="has no attribute 'Dens'"):
        stax.Dens  # noqa: B018
    assert not hasattr(stax, "MaxPool")


def test_what_the_reasons_recommend_works():
    net = stax.serial(stax.Dense(1), stax.Elementwise(jax.numpy.tanh), stax.Dense(1))
    assert stax.Activation in type(list(stax.walk(net))[1]).__mro__
