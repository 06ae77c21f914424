"""Rules: operations that take no positions together. PyTorch's marks ("pointwise", views) say so of many more."""

from __future__ import annotations

from .table import harmless

__all__: list[str] = []

# Other places for the same values.
harmless(
    *("cat", "concat", "stack", "_stack", "hstack", "vstack", "dstack", "block_diag"),
    *("repeat", "repeat_interleave", "tile", "expand_copy", "broadcast_tensors", "meshgrid", "unbind_copy"),
    *("clone", "copy", "copy_", "_to_copy", "_copy_from", "contiguous", "_reshape_copy", "_reshape_alias_copy"),
    *(
        "alias_copy",
        "view_copy",
        "permute_copy",
        "transpose_copy",
        "t_copy",
        "slice_copy",
        "select_copy",
        "_unsafe_view",
    ),
    *("split_copy", "split_with_sizes_copy", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "chunk"),
    *("squeeze_copy", "unsqueeze_copy", "as_strided_copy", "detach_copy", "diagonal_copy", "unfold_copy", "lift"),
    *(
        "lift_fresh_copy",
        "narrow_copy",
        "view_as_real_copy",
        "view_as_complex_copy",
        "_conj_copy",
        "_neg_view_copy",
    ),
    *("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "_lazy_clone", "_reshape_alias"),
    *(
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "im2col",
        "col2im",
        "unfold",
    ),
    *("constant_pad_nd", "_pad_circular", "_pad_enum", "pad"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
    *("tril", "triu", "diag_embed", "diag", "diagflat", "resize", "resize_as", "set", "squeeze", "unsqueeze"),
    *("t", "transpose", "swapaxes", "swapdims", "as_strided", "detach", "_mkldnn_reshape", "_mkldnn_transpose"),
    *("to_mkldnn", "to_dense", "_to_dense", "_to_cpu", "_pin_memory", "flatten_dense_tensors", "to_sparse"),
)

# Values looked up, or sent one by one to places.
harmless(
    *("index", "_unsafe_index", "_unsafe_masked_index", "index_select", "gather", "take", "take_along_dim"),
    *("index_copy", "index_fill", "scatter", "masked_fill", "embedding", "affine_grid_generator"),
    *("cudnn_affine_grid_generator", "max_unpool2d", "max_unpool3d", "one_hot"),
    *("torchvision::deform_conv2d", "torchvision::roi_align"),
)

# New tensors, of the sizes of others at most.
harmless(
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "zeros_like"),
    *("new_zeros", "new_ones", "new_full", "ones_like", "full_like", "zeros", "ones", "full", "fill", "zero"),
    *("rand_like", "randn_like", "randint_like", "bernoulli", "normal", "uniform", "exponential", "random"),
    *("poisson", "native_dropout", "dropout", "feature_dropout", "alpha_dropout", "_fused_dropout", "log_normal"),
    *("rrelu_with_noise", "geometric", "cauchy", "binomial", "_masked_scale"),
)

# Element by element, or among channels of one position.
harmless(
    *("_prelu_kernel", "prelu", "glu", "polar", "complex", "dequantize", "floor_divide", "cross", "linalg_cross"),
    *("log_sigmoid_forward", "hardswish", "_fused_moving_avg_obs_fq_helper", "fake_quantize_per_tensor_affine"),
    *("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "quantize_per_tensor", "quantize_per_channel"),
    *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask", "_add_relu"),
    *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "_transform_bias_rescale_qkv", "isclose", "where", "addr"),
    *("_native_batch_norm_legit_no_training", "_batch_norm_no_update", "batch_norm_elemt", "quantized_batch_norm"),
    *("modf", "frexp", "kl_div", "binary_cross_entropy", "outer", "ger", "kron", "add_relu", "_foreach_copy"),
)

# Questions about a tensor, whose answer is a number of Python's; what the code does with it shows elsewhere.
harmless(
    *("prim::device", "prim::layout"),
    *("_local_scalar_dense", "is_nonzero", "_assert_async", "_assert_tensor_metadata", "_functional_assert_async"),
    *("item", "equal", "allclose", "is_same_size", "_debug_has_internal_overlap", "sym_size", "sym_stride", "size"),
    *(
        "sym_numel",
        "sym_storage_offset",
        "is_pinned",
        "record_stream",
        "_print",
        "_assert_scalar",
        "numel",
        "stride",
    ),
    *(
        "_shape_as_tensor",
        "result_type",
        "requires_grad",
        "retain_grad",
        "_fused_sdp_choice",
        "_has_same_storage_numel",
    ),
    *("is_contiguous", "is_strides_like_format", "is_non_overlapping_and_dense", "sym_is_contiguous", "_version"),
)
