"""`nn.MultiheadAttention` whose heads and whose input width are free of each other.

The library's forward pass takes the width of the heads from the width of the query, so neither can change
alone. This one reads both from the weights. It is the same class to `isinstance`, with the same parameters
under the same names, and computes the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halp_iee.graph.sandbox import modules_of


class SizedMultiheadAttention(nn.MultiheadAttention):
    """Attention with any number of heads of the given size over inputs of any width.

    Shapes: as `nn.MultiheadAttention`; ``in_proj_weight`` is (3 h d, E) with h heads of d = ``head_dim``.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The arguments and results of `nn.MultiheadAttention.forward`."""
        batched = query.dim() == 3
        alone = query is key and key is value
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        first = self.batch_first or not batched
        q, k, v = (
            x.permute(0, 2, 1, 3) if first else x.permute(1, 2, 0, 3) for x in self._projected(query, key, value, alone)
        )
        bias = self._bias(q, k, key_padding_mask, attn_mask)
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            mixed = F.dropout(weights, self.dropout, self.training) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        out = self.out_proj((mixed.permute(0, 2, 1, 3) if first else mixed.permute(2, 0, 1, 3)).flatten(2))
        shown = None
        if need_weights:
            shown = weights.mean(1) if average_attn_weights else weights
        if not batched:
            return out.squeeze(0), None if shown is None else shown.squeeze(0)
        return out, shown

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, alone: bool) -> list[Tensor]:
        """Queries, keys and values as (., ., heads, head_dim), the first axes as given."""
        if self.in_proj_weight is not None and alone:
            made = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = (
                self.in_proj_weight.chunk(3)
                if self.in_proj_weight is not None
                else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            )
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            inputs = (query, key, value)
            made = tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return [x.view(x.shape[0], x.shape[1], -1, self.head_dim) for x in made]

    def _bias(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one tensor to add to the scores."""

        def added(one: Tensor) -> Tensor:
            return (
                torch.zeros_like(one, dtype=q.dtype).masked_fill(one, float("-inf")) if one.dtype == torch.bool else one
            )

        bias = None
        if mask is not None:
            bias = added(mask)
            if bias.dim() == 3:
                bias = bias.view(q.shape[0], -1, q.shape[2], k.shape[2])
        if padding is not None:
            row = added(padding)[:, None, None, :]
            bias = row if bias is None else bias + row
        return bias


def loosen(model: nn.Module) -> nn.Module:
    """Give every library attention of a copy the forward pass whose widths are free; returns the copy."""
    for module in modules_of(model):
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            free(module)
    return model


def free(module: nn.MultiheadAttention) -> None:
    """Switch one attention to the forward pass whose widths are free."""
    module.__class__ = SizedMultiheadAttention
    # The fused encoder kernels of the library take the widths from each other as well; this turns them off.
    module._qkv_same_embed_dim = False


def resize_attention(module: nn.MultiheadAttention, dense: nn.MultiheadAttention, rows: int, width: int) -> None:
    """Make an attention's class and attributes agree with its weights.

    Args:
        dense: it at full size.
        rows: rows of its query projection.
        width: of its query.
    """
    if (rows, width) == (dense.embed_dim, dense.embed_dim) and type(dense) is nn.MultiheadAttention:
        module.__class__ = nn.MultiheadAttention
        module._qkv_same_embed_dim = dense._qkv_same_embed_dim
    else:
        free(module)
    module.num_heads = rows // dense.head_dim
    module.embed_dim = width
