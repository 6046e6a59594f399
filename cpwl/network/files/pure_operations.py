"""The ATen operations that a model file may name: those that only compute tensors from tensors.

A file's graph is refused before anything runs if it names another. The list is by name, because
what torch says of its operations (tags, schemas) does not tell a pure one from `from_file`; what
the schemas do say is checked on top, overload by overload. Left out on purpose:

- `from_file`, `set_`, `resize_`, `as_strided`, `storage_offset` ...: files and raw memory;
- `empty`, `empty_like`, `new_empty`, `resize`: memory that nobody has written;
- `rand`, `bernoulli`, `multinomial` ...: the global generator. Dropout with `train=False` only;
- `out=` overloads, and in-place forms but for `IN_PLACE`: they write into what they are given;
- `item`, `_local_scalar_dense`, `nonzero`, `unique`: sizes and branches that depend on values;
- `_foreach_*`, `_fused_*`, `_linalg_*`, quantised, sparse, nested, complex and device operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

# fmt: off
POINTWISE = (  # numbers to numbers, entry by entry
    "abs", "acos", "acosh", "add", "addcdiv", "addcmul", "asin", "asinh", "atan", "atan2", "atanh",
    "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil", "celu", "clamp", "clamp_max",
    "clamp_min", "clip", "copysign", "cos", "cosh", "div", "divide", "elu", "eq", "erf", "erfc",
    "erfinv", "exp", "exp2", "expm1", "floor", "floor_divide", "fmax", "fmin", "fmod", "frac", "ge",
    "gelu", "glu", "greater", "greater_equal", "gt", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "heaviside", "isfinite", "isinf", "isnan", "le", "leaky_relu", "lerp", "less",
    "less_equal", "log", "log10", "log1p", "log2", "log_sigmoid", "logaddexp", "logaddexp2",
    "logical_and", "logical_not", "logical_or", "logical_xor", "logit", "lt", "masked_fill",
    "maximum", "minimum", "mish", "mul", "multiply", "nan_to_num", "ne", "neg", "negative",
    "not_equal", "positive", "pow", "prelu", "_prelu_kernel", "reciprocal", "relu", "relu6",
    "remainder", "round", "rsqrt", "rsub", "selu", "sgn", "sigmoid", "sign", "signbit", "silu",
    "sin", "sinc", "sinh", "softplus", "softshrink", "sqrt", "square", "sub", "subtract", "tan",
    "tanh", "threshold", "true_divide", "trunc", "where", "xlogy", "rrelu",
    "rrelu_with_noise_functional",
)
REDUCTIONS = (  # along axes
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "cummax", "cummin", "cumprod",
    "cumsum", "kthvalue", "linalg_norm", "linalg_vector_norm", "log_softmax", "_log_softmax",
    "logcumsumexp", "logsumexp", "max", "mean", "median", "min", "nanmedian", "norm", "prod",
    "softmax", "_softmax", "std", "std_mean", "sum", "var", "var_mean", "sort", "msort", "argsort",
    "topk", "diff", "pairwise_distance", "cosine_similarity", "nansum",
)
PRODUCTS = (
    "addmm", "baddbmm", "bmm", "cdist", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "convolution", "_convolution", "dot", "einsum",
    "linear", "matmul", "mm", "mv", "outer", "scaled_dot_product_attention", "tensordot",
    "_trilinear",
)
NORMALISATIONS = (
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "native_group_norm",
    "native_layer_norm", "_native_batch_norm_legit_no_training", "rms_norm", "dropout",
    "feature_dropout", "alpha_dropout", "native_dropout",
)
RESAMPLING = (
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d", "max_pool2d",
    "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler",
    "grid_sampler_2d", "grid_sampler_3d", "affine_grid_generator", "constant_pad_nd", "pad",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "_pad_circular", "im2col", "col2im", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
)
MOVING = (  # entries to other places; indices are checked by torch
    "alias", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "broadcast_to", "cat",
    "chunk", "clone", "column_stack", "concat", "concatenate", "contiguous", "detach", "diag",
    "diag_embed", "diagonal", "dstack", "embedding", "expand", "expand_as", "flatten", "flip",
    "fliplr", "flipud", "gather", "hsplit", "hstack", "index", "_unsafe_index", "index_select",
    "lift_fresh", "lift_fresh_copy", "meshgrid", "moveaxis", "movedim", "narrow", "permute",
    "ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "roll", "select", "slice",
    "split", "split_with_sizes", "squeeze", "stack", "swapaxes", "swapdims", "t", "take_along_dim",
    "tensor_split", "tile", "transpose", "tril", "triu", "unbind", "unflatten", "unfold",
    "unsqueeze", "_unsafe_view", "view", "view_as", "vsplit", "vstack", "permute_copy", "view_copy",
    "expand_copy", "slice_copy", "squeeze_copy", "unsqueeze_copy", "select_copy", "transpose_copy",
    "t_copy", "detach_copy", "alias_copy", "split_copy", "unbind_copy", "unfold_copy",
    "split_with_sizes_copy", "diagonal_copy",
)
WRITING = (  # into a copy of a tensor
    "copy", "diagonal_scatter", "fill", "index_add", "index_copy", "index_fill", "index_put",
    "_unsafe_index_put", "masked_scatter", "scatter", "scatter_add", "scatter_reduce",
    "select_scatter", "slice_scatter", "zero",
)
MAKING = (  # from numbers alone
    "arange", "eye", "full", "full_like", "linspace", "new_full", "new_ones", "new_zeros", "ones",
    "ones_like", "scalar_tensor", "zeros", "zeros_like",
)
TYPES = (
    "_to_copy", "to", "type_as",
)
SIZES = (
    "sym_size", "sym_numel", "sym_stride",
)
RECURRENT = (
    "rnn_relu", "rnn_tanh", "gru", "lstm",
)
# Written by modules with inplace=True and by assignments. `pt2` lets them write into values that
# the graph has computed, never into weights.
IN_PLACE = (
    "abs_", "add_", "addcdiv_", "addcmul_", "ceil_", "celu_", "clamp_", "clamp_max_", "clamp_min_",
    "clip_", "copy_", "cos_", "detach_", "div_", "divide_", "elu_", "erf_", "exp_", "fill_",
    "floor_", "floor_divide_", "fmod_", "gelu_", "hardsigmoid_", "hardswish_", "hardtanh_",
    "index_add_", "index_copy_", "index_fill_", "index_put_", "leaky_relu_", "lerp_", "log_",
    "masked_fill_", "masked_scatter_", "mish_", "mul_", "multiply_", "nan_to_num_", "neg_", "pow_",
    "reciprocal_", "relu_", "relu6_", "remainder_", "round_", "rsqrt_", "scatter_", "scatter_add_",
    "scatter_reduce_", "selu_", "sigmoid_", "sign_", "silu_", "sin_", "sqrt_", "square_",
    "squeeze_", "sub_", "subtract_", "t_", "tanh_", "threshold_", "transpose_", "tril_", "triu_",
    "trunc_", "unsqueeze_", "zero_", "dropout_",
)
# Assertions of the exporter: they compute nothing, and are dropped.
ASSERTIONS = (
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range",
    "sym_constrain_range_for_size",
)
# fmt: on

PURE = frozenset(
    (*POINTWISE, *REDUCTIONS, *PRODUCTS, *NORMALISATIONS, *RESAMPLING, *MOVING, *WRITING, *MAKING,
     *TYPES, *SIZES, *RECURRENT)
)  # fmt: skip
# The argument that switches randomness, or statistics that are written, off.
SWITCHES = {
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "alpha_dropout"), "train"),
    **dict.fromkeys(("native_dropout", *RECURRENT), "train"),
    **dict.fromkeys(("rrelu", "rrelu_with_noise_functional", "batch_norm"), "training"),
    "instance_norm": "running_mean",
    "scaled_dot_product_attention": "dropout_p",
}
# Reads of an array in bytes of another dtype, and sizes that follow from values.
_REFUSED = ("view.dtype", "repeat_interleave.Tensor")
_PLAIN = ("Tensor", "int", "float", "bool", "number", "str", "Device", "Generator")


def find_operation(name: str, overload: str) -> OpOverload | None:
    """Return ``aten.name.overload`` if a file may name it."""
    if name not in PURE and name not in IN_PLACE and name not in ASSERTIONS:
        return None
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        return None
    found = getattr(packet, overload)
    return found if name in ASSERTIONS or _is_pure(found, name) else None


def _is_pure(operation: OpOverload, name: str) -> bool:
    """Whether a schema writes into nothing but, in place, its first argument."""
    schema = operation._schema
    written = [k for k, arg in enumerate(schema.arguments) if _is_written(arg)]
    words = [
        str(arg.type).replace("Optional[", "").replace("List[", "").rstrip("]")
        for arg in schema.arguments
    ]
    # operations of TorchScript on numbers and lists share the names
    computes = name in MAKING or name in SIZES or "Tensor" in words
    plain = all(word in _PLAIN for word in words)
    short = f"{name}.{operation._overloadname}"
    named = "names" in short or "Dimname" in short or "dimname" in short
    return (
        written == ([0] if name in IN_PLACE else [])
        and computes and plain and not named and short not in _REFUSED
    )  # fmt: skip


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def writes(operation: Any) -> bool:
    """Whether an operation of this list writes into its first argument."""
    return isinstance(operation, OpOverload) and _is_written(operation._schema.arguments[0])


def find_fault(operation: OpOverload, given: dict[str, Any]) -> str:
    """Say which argument makes a call random or gives it sizes that do not fit; empty if none."""
    name = operation._schema.name.removeprefix("aten::")
    switch = SWITCHES.get(name)
    if switch is None:
        return ""
    value = given.get(switch)
    off = value is None or value is False or value == 0
    if name == "instance_norm":
        off = value is None or given.get("use_input_stats") is False
    if name in RECURRENT:
        off = value is False or given.get("dropout") == 0
    return "" if off else f"{switch}={value}, in training mode"
