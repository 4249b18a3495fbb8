"""Sound arithmetic: certified operator norms and Lipschitz constants, boxes through layers.

A box is a pair ``(lower, upper)`` of tensors of one shape. Every function on boxes has one switch,
``sound``:

- ``sound=False`` (default): in the tensors' own precision, differentiable, for training. What it
  returns bounds the image up to rounding.
- ``sound=True``: in float64, widened outwards by everything that rounding may have done, without
  gradients, for certificates. What it returns contains the image of the box under the layer *in
  exact arithmetic*, with the weights as they are stored. This assumes IEEE 754 double precision,
  round to nearest, gradual underflow (torch's default), and that torch's exponentials and
  hyperbolic functions are accurate to a few units in the last place.
"""

from .affine import (
    batch_norm_interval,
    bilinear_interval,
    conv2d_interval,
    linear_interval,
    normalize_interval,
    product_interval,
)
from .boxes import NoBoundError, add_interval, ball, check_box
from .convolution import conv2d_norm_bound
from .layers import affine_parameters, interval
from .lipschitz import check_unaltered, lipschitz_bound, lipschitz_product
from .monotone import monotone_interval, softplus_interval
from .rounding import gamma, round_down, round_up
from .spectral import largest_spectral_norm_bound, spectral_norm_bound

__all__ = [
    "NoBoundError",
    "add_interval",
    "affine_parameters",
    "ball",
    "batch_norm_interval",
    "bilinear_interval",
    "check_box",
    "check_unaltered",
    "conv2d_interval",
    "conv2d_norm_bound",
    "gamma",
    "interval",
    "largest_spectral_norm_bound",
    "linear_interval",
    "lipschitz_bound",
    "lipschitz_product",
    "monotone_interval",
    "normalize_interval",
    "product_interval",
    "round_down",
    "round_up",
    "softplus_interval",
    "spectral_norm_bound",
]
