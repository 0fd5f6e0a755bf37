"""The reference trainer's networks and losses: GiMP in plain PyTorch as one would write it from the paper today.

Attention is the package `nystrom-attention`, put together in the way TransMIL and its followers do: a projection, a
CLS token, two pre-norm residual layers. Masked patches are replaced with `torch.where`, every token is decoded, and the
loss is averaged over the masked ones (SimMIM's way). GroupMSA attends in each group by itself, one after another.
Nothing is slowed down on purpose: softmax and products are torch's own, bags are float32 as people store them, and
CLS_ge of the frozen gene encoder is computed once, as here. Left out: reading (`_reference_bags`).

Parameters are named as those of the package, so that both can have the same weights.

Shape suffixes: B batch, L patches, N tokens, E patch embedding width, D hidden width, G genes, C classes.
"""

import torch
import torch.nn.functional as F
from nystrom_attention import NystromAttention
from torch import Tensor, nn


class ReferenceAggregator(nn.Module):
    """Projection, CLS, residual layers of the package's attention."""

    def __init__(
        self, in_dim: int, dim: int, heads: int, dim_head: int, landmarks: int, kernel: int, layers: int
    ) -> None:
        super().__init__()
        self.project = nn.Linear(in_dim, dim)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(
            NystromAttention(dim, dim_head=dim_head, heads=heads, num_landmarks=landmarks, residual_conv_kernel=kernel)
            for _ in range(layers)
        )
        self.cls_norm = nn.LayerNorm(dim)

    def forward(
        self, x_BLE: Tensor, masked_BL: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """CLS (B, D) and tokens (B, L, D)."""
        x_BLD = self.project(x_BLE)
        if masked_BL is not None and mask_token is not None:
            x_BLD = torch.where(masked_BL[..., None], mask_token.to(x_BLD.dtype), x_BLD)
        x_BND = torch.cat([self.cls_token.to(x_BLD.dtype).expand(len(x_BLD), 1, -1), x_BLD], dim=1)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x_BND = x_BND + attention(norm(x_BND))
        return self.cls_norm(x_BND[:, 0]), x_BND[:, 1:]


class ReferenceGiMP(nn.Module):
    """Pre-training: both sides' tokens joined, every patch reconstructed."""

    def __init__(self, aggregator: ReferenceAggregator, dim: int, in_dim: int) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.decoder = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, in_dim))

    def forward(self, x_BLE: Tensor, masked_BL: Tensor, cls_ge_BD: Tensor) -> tuple[Tensor, Tensor]:
        """CLS_pat (B, 2 D) and the reconstruction (B, L, E)."""
        cls_BD, tokens_BLD = self.aggregator(x_BLE, masked_BL, self.mask_token)
        return torch.cat([cls_BD, cls_ge_BD.to(cls_BD.dtype)], dim=-1), self.decoder(tokens_BLD)


class ReferenceClassifier(nn.Module):
    """Fine-tuning: a head on CLS of the whole bag."""

    def __init__(self, aggregator: ReferenceAggregator, dim: int, num_classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.25), nn.Linear(hidden, num_classes))

    def forward(self, x_BLE: Tensor) -> Tensor:
        """(B, L, E) -> logits (B, C)."""
        logits: Tensor = self.head(self.aggregator(x_BLE)[0])
        return logits


def reference_loss(
    cls_pat_BF: Tensor,
    reconstruction_BLE: Tensor,
    x_BLE: Tensor,
    masked_BL: Tensor,
    labels_B: Tensor,
    margin: float = 0.8,
) -> Tensor:
    """L1 over the masked patches, and every triplet of the mini-batch with a loss."""
    error_BL = F.l1_loss(reconstruction_BLE.float(), x_BLE, reduction="none").mean(dim=-1)
    reconstruction = (error_BL * masked_BL).sum() / masked_BL.sum()
    x_BF = F.normalize(cls_pat_BF.float(), dim=-1)
    distance_BB = torch.cdist(x_BF, x_BF, compute_mode="donot_use_mm_for_euclid_dist").square()
    same_BB = labels_B[:, None] == labels_B
    itself_BB = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    triplet_BBB = (same_BB & ~itself_BB)[:, :, None] & ~same_BB[:, None, :]
    terms = F.relu(distance_BB[:, :, None] - distance_BB[:, None, :] + margin)[triplet_BBB]
    return reconstruction + terms.sum() / (terms > 0).sum().clamp_min(1)


class _Block(nn.Module):
    """Pre-norm self-attention and feed-forward over all tokens."""

    def __init__(self, dim: int, heads: int, ff_mult: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_k = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.to_v, self.to_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        hidden = int(dim * ff_mult)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTD = self.attention_norm(x_BTD)
        q, k, v = (
            to(h_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v)
        )
        x_BTD = x_BTD + self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return out


class ReferenceGroupMSA(nn.Module):
    """GroupMSA (section 2.1) with a loop over the groups; no dropout."""

    def __init__(self, num_genes: int, dim: int, fragments: int, groups: int, heads: int, ff_mult: float) -> None:
        super().__init__()
        self.size, self.fragments, self.groups = -(-num_genes // fragments), fragments, groups
        self.project = nn.Linear(self.size, dim)
        self.position_FD = nn.Parameter(torch.randn(fragments, dim))
        self.group_token_RD = nn.Parameter(torch.randn(groups, dim) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.intra, self.inter = _Block(dim, heads, ff_mult), _Block(dim, heads, ff_mult)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BG: Tensor) -> Tensor:
        """(B, G) -> CLS_ge (B, D)."""
        B = len(x_BG)
        x_BG = F.pad(x_BG, (0, self.fragments * self.size - x_BG.shape[1]))
        x_BFD = self.project(x_BG.view(B, self.fragments, self.size)) + self.position_FD
        tokens = []
        for number, group_BTD in enumerate(x_BFD.chunk(self.groups, dim=1)):
            token_B1D = self.group_token_RD[number].expand(B, 1, -1)
            tokens.append(self.intra(torch.cat([token_B1D, group_BTD], dim=1))[:, 0])
        x_BRD = torch.stack([self.cls_token.expand(B, -1), *tokens], dim=1)
        out: Tensor = self.norm(self.inter(x_BRD)[:, 0])
        return out
