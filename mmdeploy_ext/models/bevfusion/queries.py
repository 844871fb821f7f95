"""The parts of TransFusion's head behind its queries: a decoder layer, and predictors of box values.

Glossary: B samples, C channels, T cells of the bird's-eye view, Q queries, n positions.
"""

from collections.abc import Mapping, Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn


class PositionEmbedding(nn.Module):
    """Positions to channels; the two layers have upstream's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(True),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Return (B, n, C) of (B, n, 2)."""
        return self.position_embedding_head(positions.transpose(1, 2)).transpose(1, 2)


class Attention(nn.MultiheadAttention):
    """Its parameters; written out, since what PyTorch runs when it is evaluated has no form in ONNX."""

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, Q, C) of queries (B, Q, C) and keys (B, n, C), which are the values, too."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = (
            nn.functional.linear(inputs, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for inputs, weight, bias in zip((queries, keys, keys), weights, biases, strict=True)
        )
        query, key, value = projected  # opset 13 has no scaled_dot_product_attention
        attention = (query * query.shape[3] ** -0.5 @ key.transpose(2, 3)).softmax(3)
        outputs = nn.functional.dropout(attention, self.dropout, self.training) @ value
        return self.out_proj(outputs.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at every cell; keys and values carry the positions, too.

    Source: mit-han-lab/bevfusion db75150, models/utils/transformer.py:12-111.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads, dropout)
        self.multihead_attn = Attention(channels, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.self_posembed, self.cross_posembed = PositionEmbedding(channels), PositionEmbedding(channels)

    def forward(self, queries: Tensor, keys: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """Return refined queries (B, Q, C), which look at keys (B, T, C).

        Positions are (B, Q, 2) and (B, T, 2) cells, x first.
        """
        query_embedding, key_embedding = self.self_posembed(query_pos), self.cross_posembed(key_pos)
        placed = queries + query_embedding
        queries = self.norm1(queries + self.dropout(self.self_attn(placed, placed)))
        update = self.multihead_attn(queries + query_embedding, keys + key_embedding)
        queries = self.norm2(queries + self.dropout(update))
        wide = self.dropout(self.linear1(queries).relu())
        return self.norm3(queries + self.dropout(self.linear2(wide)))


class Predictor(nn.ModuleDict):
    """One small network for each value of a box, and for the classes."""

    def __init__(self, channels: int, outputs: Mapping[str, Sequence[int]], hidden: int = 64) -> None:
        super().__init__()
        for name, (count, layers) in outputs.items():
            blocks = [
                ConvModule(
                    hidden if index else channels, hidden, 1, bias='auto',
                    conv_cfg=dict(type='Conv1d'), norm_cfg=dict(type='BN1d'),
                )
                for index in range(layers - 1)
            ]  # fmt: skip
            self[name] = nn.Sequential(*blocks, nn.Conv1d(hidden, count, 1))

    def forward(self, queries: Tensor) -> dict[str, Tensor]:
        """Return name -> (B, count, Q) of queries (B, C, Q)."""
        return {name: layers(queries) for name, layers in self.items()}
