"""A fit on two machines or more: the same command on each, with its own number.

On the first machine, whose address the others must reach, start

    python benchmarks/two_machines.py --coordinator HOST:PORT --num-processes 2 \
        --process-id 0 --data FOLDER --checkpoint SUMS --save model.jns

and on the second the same with `--process-id 1`. Each process reads its own part of the
training examples and sums their features on its devices. One reduction joins the sums.
FOLDER holds x_train.npy and y_train.npy, which are read as memory maps, and perhaps
x_test.npy and y_test.npy. Without `--data` the examples are scikit-learn's digits.
After a crash, start all processes again: each resumes from its checkpoint.
"""

import argparse
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

import jax_ntk_sketch as jns
from jax_ntk_sketch import stax
from jax_ntk_sketch.batches.prepared import Prepared

REGS = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
NAMES = ("x_train", "y_train", "x_test", "y_test")


def read(folder: str | None) -> dict[str, np.ndarray]:
    """Return the arrays by name, as memory maps."""
    if folder is None:
        digits = jns.data.load_digits()
        return {name: getattr(digits, name) for name in NAMES}
    paths = {name: pathlib.Path(folder) / f"{name}.npy" for name in NAMES}
    found = {name: path for name, path in paths.items() if path.is_file()}
    if not {"x_train", "y_train"} <= found.keys():
        raise SystemExit(f"{folder} must hold x_train.npy and y_train.npy")
    return {name: np.load(path, mmap_mode="r") for name, path in found.items()}


def part(count: int) -> slice:
    """Return the rows of this process."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def scaled(x: np.ndarray) -> np.ndarray:
    """Return pixels as 0 to 1, and other numbers as they are."""
    return x / np.float32(255) if x.dtype == np.uint8 else np.asarray(x)


def main() -> None:
    """Fit, save and test."""
    args = arguments()
    if args.num_processes > 1:
        place = (args.coordinator, args.num_processes, args.process_id)
        beat = args.heartbeat_seconds
        jax.distributed.initialize(*place, heartbeat_timeout_seconds=beat)
    arrays = read(args.data)
    shape = arrays["x_train"].shape[1:]
    mesh = jns.sharding.data_mesh()

    def log(text: str) -> None:
        if jax.process_index() == 0:
            print(text, flush=True)

    log(f"{jax.process_count()} processes, {mesh.size} devices")
    rows = part(len(arrays["x_train"]))
    x = Prepared(arrays["x_train"][rows], shape, scaled)
    net = stax.serial(
        stax.Flatten(), stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1)
    )
    fmap = jns.feature_map(net, num_features=args.num_features)
    params = fmap.init(jax.random.key(args.seed), shape)
    fitted = jns.linear_model.fit(
        fmap,
        params,
        x,
        arrays["y_train"][rows],
        reg=REGS,
        batch_size=args.batch_size,
        checkpoint=args.checkpoint and pathlib.Path(args.checkpoint) / "sums.jns",
        checkpoint_seconds=args.checkpoint_seconds,
        mesh=mesh,
    )
    log(f"reg {float(fitted.best.reg):.0e}, by generalized cross-validation")
    if jax.process_index() == 0 and args.save is not None:
        jns.io.save(args.save, fitted)
    if "x_test" in arrays and fitted.best.num_classes is not None:
        # Each process has the whole model, and predicts its part of the test examples.
        total = len(arrays["x_test"])
        rows = part(total)
        x = Prepared(arrays["x_test"][rows], shape, scaled)
        right = fitted.predict_class(x, mesh=mesh) == arrays["y_test"][rows]
        right = multihost_utils.process_allgather(np.array(right.sum()))
        log(f"test error {1 - right.sum() / total:.4f} of {total} examples")


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--coordinator", help="HOST:PORT of process 0, any free port")
    add("--num-processes", type=int, default=1, help="number of processes")
    add("--process-id", type=int, default=0, help="0, 1, ...")
    add("--heartbeat-seconds", type=int, default=30, help="until a dead one is missed")
    add("--data", help="folder of .npy files; the default is scikit-learn's digits")
    add("--num-features", type=int, default=1024, help="features")
    add("--seed", type=int, default=0, help="of the features, the same everywhere")
    add("--batch-size", type=int, default=1024, help="examples at a time, each device")
    add("--checkpoint", help="folder, of each machine or shared")
    add("--checkpoint-seconds", type=float, default=60.0, help="between checkpoints")
    add("--save", help="file for the model, written by process 0")
    args = parser.parse_args()
    if args.num_processes > 1 and args.coordinator is None:
        parser.error("--coordinator is required with several processes")
    return args


if __name__ == "__main__":
    main()
