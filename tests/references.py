"""Exact kernels in NumPy and float64, independent of the code under test.

Of the package this file imports the records of networks alone.
"""

import functools
import itertools
import math

import numpy as np

from jax_ntk_sketch import stax


def kappa0(alpha):
    return (np.pi - np.arccos(np.clip(alpha, -1, 1))) / np.pi


def kappa1(alpha):
    alpha = np.clip(alpha, -1, 1)
    return np.sqrt(1 - alpha**2) / np.pi + alpha * kappa0(alpha)


def cosines(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Products of norms, and cosines (1 on the diagonal, 0 for zero vectors)."""
    norms = np.sqrt(np.diagonal(k))
    product = np.outer(norms, norms)
    alpha = np.divide(k, product, out=np.zeros_like(k), where=product > 0)
    np.fill_diagonal(alpha, (norms > 0).astype(float))
    return product, alpha


def window_matrices(shape, strides, padding, spatial, dilation=None) -> np.ndarray:
    """What lies at each offset of a window: (offsets, *positions, pixels), 0 and 1."""
    ones = (1,) * len(shape)
    axes = []
    for size, width, step, gap in zip(
        spatial, shape, strides or ones, dilation or ones, strict=True
    ):
        reach, before = (width - 1) * gap + 1, 0
        out = (size - reach) // step + 1
        if padding != "VALID":
            out = -(-size // step)
            before = max((out - 1) * step + reach - size, 0) // 2
        pixels = [np.arange(out) * step - before + i * gap for i in range(width)]
        if padding == "CIRCULAR":
            pixels = [p % size for p in pixels]
        axes.append([p[:, None] == np.arange(size) for p in pixels])
    kron = functools.partial(functools.reduce, np.kron)
    matrices = np.array([kron(one) for one in itertools.product(*axes)], float)
    return matrices.reshape(len(matrices), *(len(a[0]) for a in axes), -1)


def moved(k, matrices) -> np.ndarray:
    """The sum of M K M' over matrices M, (positions, pixels), for all examples."""
    matrices = matrices.reshape(len(matrices), -1, matrices.shape[-1])
    _, positions, pixels = matrices.shape
    n = len(k) // pixels
    k = k.reshape(n, pixels, n, pixels)
    k = np.einsum("oap,ipjq,obq->iajb", matrices, k, matrices)
    return k.reshape(n * positions, n * positions)


def linear_matrices(layer, spatial) -> np.ndarray | None:
    """How a layer mixes pixels, in matrices M of `moved`; None if it does not."""
    pixels = math.prod(spatial)
    if isinstance(layer, stax.Conv):
        size = math.prod(layer.filter_shape) ** 0.5
        windows = layer.filter_shape, layer.strides, layer.padding
        return window_matrices(*windows, spatial) / size
    if isinstance(layer, stax.AvgPool):
        windows = layer.window_shape, layer.strides, layer.padding
        return window_matrices(*windows, spatial).mean(0, keepdims=True)
    if isinstance(layer, stax.GlobalAvgPool):
        return np.full((1, pixels), 1 / pixels)
    if isinstance(layer, stax.Flatten):
        return np.eye(pixels) / pixels**0.5
    return None


def network_kernels(net, x, kappa0=kappa0, kappa1=kappa1) -> dict[str, np.ndarray]:
    """NNGP and NTK of a network, or of one whose kappas are polynomials.

    x (n, *spatial, c); between layers all pairs of positions of all pairs of examples.
    """
    spatial, x = x.shape[1:-1], np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    nngp = x @ x.T / x.shape[1]
    ntk = np.zeros_like(nngp)
    for layer in stax.walk(net):
        mix = linear_matrices(layer, spatial)
        if mix is not None:
            nngp, ntk, spatial = moved(nngp, mix), moved(ntk, mix), mix.shape[1:-1]
        if isinstance(layer, stax.Dense | stax.Conv):
            nngp = layer.W_std**2 * nngp + (layer.b_std or 0) ** 2
            ntk = layer.W_std**2 * ntk + nngp
        elif isinstance(layer, stax.Relu):
            product, alpha = cosines(nngp)
            nngp = product * kappa1(alpha) / 2
            ntk = ntk * kappa0(alpha) / 2
    return {"nngp": nngp, "ntk": ntk}


def power_series(f, degree: int) -> np.ndarray:
    """The power series of a function that is analytic in the unit disk.

    Cauchy's integral over a circle, by the trapezoidal rule: with 256 nodes at radius
    1/2 the error is below 1e-12.
    """
    nodes, radius = 256, 0.5
    z = radius * np.exp(2j * np.pi * np.arange(nodes) / nodes)
    c = np.fft.fft(f(z)) / nodes
    return c.real[: degree + 1] * radius ** -np.arange(degree + 1.0)


def complex_kappa0(alpha):
    return 1 - np.arccos(alpha) / np.pi


def complex_kappa1(alpha):
    return np.sqrt(1 - alpha * alpha) / np.pi + alpha * complex_kappa0(alpha)


class CosineKernel:
    """The kernel of a fully connected network as N f(cos) + c.

    N and cos are the norms and the cosine after the linear layers that precede the
    first `Relu`; c comes from biases after the last one.
    """

    def __init__(self, net, kind: str):
        layers = list(stax.walk(net))
        relus = [i for i, layer in enumerate(layers) if isinstance(layer, stax.Relu)]
        self.kind, self.prefix = kind, stax.serial(*layers[: relus[0]])
        self.rest = layers[relus[0] :]
        self.entering = sum(isinstance(x, stax.Dense) for x in layers[: relus[0]])
        self.constant = self._propagate(np.array(1.0 + 0j))[1]

    def __call__(self, alpha):
        """f, of real or complex cosines."""
        values = self._propagate(np.asarray(alpha, complex))[0]
        return values if np.iscomplexobj(alpha) else values.real

    def _propagate(self, alpha):
        """f at cosines, and c; `g` and `h` are the NNGP kernel and the NTK over N."""
        g, h, at_one = alpha, self.entering * alpha, 1.0
        c_nngp, c_ntk = 0.0, 0.0
        for layer in self.rest:
            if isinstance(layer, stax.Dense):
                square, bias = layer.W_std**2, (layer.b_std or 0) ** 2
                g, at_one, c_nngp = square * g, square * at_one, square * c_nngp + bias
                h, c_ntk = square * h + g, square * c_ntk + c_nngp
            elif isinstance(layer, stax.Relu):
                cosine = g / at_one
                h = h * complex_kappa0(cosine) / 2
                g, at_one = at_one * complex_kappa1(cosine) / 2, at_one / 2
        return (h, c_ntk) if self.kind == "ntk" else (g, c_nngp)


def sketch_kernels(net, c0, c1, x) -> dict[str, np.ndarray]:
    """What "ntk_sketch" estimates, given the coefficients of both polynomials.

    For one hidden layer this is exactly the mean.
    """
    kappas = (np.polynomial.Polynomial(np.array(c)) for c in (c0, c1))
    return network_kernels(net, x, *kappas)


def one_pass_kernel(net, kind: str, coefficients, x) -> np.ndarray:
    """What "one_pass" estimates: the kernel with the polynomial in place of f."""
    kernel = CosineKernel(net, kind)
    product, alpha = cosines(network_kernels(kernel.prefix, x)["nngp"])
    f = np.polynomial.Polynomial(np.array(coefficients))
    return product * f(alpha) + kernel.constant
