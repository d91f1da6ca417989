"""Files of feature maps and models, which describe themselves.

`save` writes a model of `jax_ntk_sketch.fit`, a fitted model, a feature map with its
parameters, or a linear model.
`load` reads the file in another process, and needs neither the code that made the map
nor a pickle.

A file holds the network and the method as JSON, the arrays, the versions of the
libraries that wrote it, and a *fingerprint*: the features of fixed examples. `load`
computes these features again. If a later version of the library computes others, the
file is refused, because the weights of a model belong to the features that they were
fitted on.

Maps with Python functions have no JSON. These are networks with `stax.Elementwise` and
maps of `landmark_features`. Of them the file holds the compiled program, made by
`jax.export`, for CPU, GPU and TPU.

The format is that of safetensors, whose readers read the arrays in any language.

>>> import pathlib, tempfile
>>> import jax
>>> import numpy as np
>>> import jax_ntk_sketch as jns
>>> from jax_ntk_sketch import stax
>>> net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))
>>> fmap = jns.feature_map(net, num_features=20)
>>> params = fmap.init(jax.random.key(0), (3,))
>>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
>>> model = jns.linear_model.fit(fmap, params, x, x[:, 0], reg=1e-3)
>>> path = pathlib.Path(tempfile.mkdtemp()) / "model.jns"
>>> jns.io.save(path, model)
>>> bool((jns.io.load(path).predict(x) == model.predict(x)).all())
True
"""

from jax_ntk_sketch.io._save_and_load import load, save

__all__ = ["load", "save"]
