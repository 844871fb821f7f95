"""Small layers of the head.

Source: exiawsh/StreamPETR 95f6470, models/utils/misc.py (`MLN`, `SELayer_Linear`); parameter names are the
checkpoints'.
"""

from torch import Tensor, nn


class MLN(nn.Module):
    """Motion-aware layer normalisation: a code scales and shifts what was normed; at first, not at all."""

    def __init__(self, code_dims: int, embed_dims: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(code_dims, embed_dims), nn.ReLU())
        self.gamma = nn.Linear(embed_dims, embed_dims)
        self.beta = nn.Linear(embed_dims, embed_dims)
        self.ln = nn.LayerNorm(embed_dims, elementwise_affine=False)
        for linear, bias in ((self.gamma, 1.0), (self.beta, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Normalise `features` (..., C) and modulate them by `code` (..., code_dims)."""
        hidden = self.reduce(code)
        return self.gamma(hidden) * self.ln(features) + self.beta(hidden)


class SELayer(nn.Module):
    """A gate on features, computed from other features of the same size."""

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Linear(embed_dims, embed_dims)
        self.conv_expand = nn.Linear(embed_dims, embed_dims)

    def forward(self, features: Tensor, gating: Tensor) -> Tensor:
        """Multiply `features` (..., C) by a sigmoid gate made from `gating` (..., C)."""
        return features * self.conv_expand(self.conv_reduce(gating).relu()).sigmoid()
