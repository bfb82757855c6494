"""DINOv2 as a monocular backbone: four feature maps of every image.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023; the network is
timm's, with patches of 14 pixels and without registers. Position embeddings are resized as in the
authors' code (facebookresearch/dinov2).
"""

from functools import partial
from typing import cast

import timm
import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, LayerScale, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..errors import UserError
from ..geometry.constants import keep_results
from ..kernels.attention import attention
from ..kernels.linear import linear, linear_gelu
from ..kernels.norm import LayerNorm
from ..kernels.residual import add_scaled

PATCH = 14
GRID = 37  # patches per side of the trained position embedding
TAPS = {"vits": (2, 5, 8, 11), "vitb": (2, 5, 8, 11), "vitl": (4, 11, 17, 23)}
NAMES = {
    "vits": "vit_small_patch14_dinov2",
    "vitb": "vit_base_patch14_dinov2",
    "vitl": "vit_large_patch14_dinov2",
}


class _Attention(Attention):
    """timm's attention, computed by `kernels.attention`."""

    backend = "sdpa"

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        assert attn_mask is None and not is_causal
        batch, tokens, _ = x.shape
        parts = linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in parts)
        x = attention(*heads, backend=self.backend)
        x = x.transpose(1, 2).reshape(batch, tokens, -1)
        return linear(x, self.proj.weight, self.proj.bias)


class _Mlp(Mlp):
    """timm's feed-forward network, computed by `kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        x = linear_gelu(x, self.fc1.weight, self.fc1.bias)
        return linear(x, self.fc2.weight, self.fc2.bias)


class _Block(Block):
    """timm's block, whose scaled results are added by `kernels.residual`."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        assert attn_mask is None and not is_causal
        x = self._add(x, self.attn(self.norm1(x)), self.ls1)
        return self._add(x, self.mlp(self.norm2(x)), self.ls2)

    @staticmethod
    def _add(x: Tensor, change: Tensor, scale: nn.Module) -> Tensor:
        return add_scaled(x, change, cast(LayerScale, scale).gamma)


@keep_results
def _bicubic(size: int, device: torch.device) -> Float[Tensor, "{size} grid"]:
    """Returns the matrix that resizes one axis of the position grid to `size` patches.

    As in the authors' code, the interpolation gets the *factor* (size + 0.1)/37, not the size. The
    factor determines where samples lie, and trained weights expect them there.
    """
    eye = torch.eye(GRID)[None, None]
    scale = ((size + 0.1) / GRID, 1.0)
    return interpolate(eye, scale_factor=scale, mode="bicubic")[0, 0].to(device)


def patches_within(height: int, width: int, limit: int = 0) -> tuple[int, int]:
    """Rows and columns of patches for images of that size, in a longer side of at most `limit`
    pixels where it is not 0; the shorter side keeps the ratio, rounded down."""
    longer = max(height, width)
    if 0 < limit < longer:
        height, width = int(height / longer * limit), int(width / longer * limit)
    return max(height // PATCH, 1), max(width // PATCH, 1)


class DinoV2(nn.Module):
    """Normalised images -> four maps [n, channel, height/14, width/14], each after the final norm.

    `size` is vits, vitb or vitl. Images are first resized to the largest multiples of 14 within
    their size, bilinearly with aligned corners, and to at most `limit` pixels along the longer
    side; 0: no limit.
    """

    def __init__(self, size: str, backend: str = "sdpa", limit: int = 0) -> None:
        super().__init__()
        self.limit = limit
        if size not in NAMES:
            raise UserError(
                f"vit {size!r}", f"one of {', '.join(NAMES)}", "set `vit` to one of these"
            )
        self.taps = TAPS[size]
        vit = timm.create_model(
            NAMES[size],
            num_classes=0,
            norm_layer=partial(LayerNorm, eps=1e-6),
            block_fn=_Block,
            attn_layer=_Attention,
            mlp_layer=_Mlp,
        )
        assert isinstance(vit, VisionTransformer)
        for module in vit.modules():
            if isinstance(module, _Attention):
                module.backend = backend
        self.vit = vit

    def position(self, height: int, width: int) -> Float[Tensor, "token channel"]:
        """Returns the embeddings of the class token and of height x width patches, row-major."""
        assert self.vit.pos_embed is not None
        table = self.vit.pos_embed[0]
        if (height, width) == (GRID, GRID):
            return table
        grid = table[1:].unflatten(0, (GRID, GRID))
        rows, columns = _bicubic(height, table.device), _bicubic(width, table.device)
        with torch.autocast(table.device.type, enabled=False):
            resized = torch.einsum("yj,xi,jic->yxc", rows, columns, grid.float())
        return torch.cat([table[:1], resized.flatten(0, 1).to(table)])

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> tuple[Tensor, ...]:
        height, width = patches_within(images.shape[-2], images.shape[-1], self.limit)
        fit = (height * PATCH, width * PATCH)
        images = interpolate(images, size=fit, mode="bilinear", align_corners=True)
        project = self.vit.patch_embed.proj
        patches = project(images.to(project.weight.dtype)).flatten(2).transpose(1, 2)
        assert self.vit.cls_token is not None
        start = self.vit.cls_token.to(patches).expand(len(images), -1, -1)
        x = torch.cat([start, patches], dim=1) + self.position(height, width)
        maps = []
        for index, block in enumerate(self.vit.blocks):
            x = block(x)
            if index in self.taps:
                tokens = self.vit.norm(x)[:, 1:]
                maps.append(tokens.transpose(1, 2).unflatten(2, (height, width)))
        return tuple(maps)


def released(size: str) -> dict[str, Tensor]:
    """Loads the released weights through timm, under the names of `DinoV2(size).vit`.

    Raises UserError if they are not in the hub's cache and cannot be downloaded.
    """
    try:
        return timm.create_model(NAMES[size], pretrained=True, num_classes=0).state_dict()
    except OSError as error:  # also raised if the hub cannot be reached
        raise UserError(
            f"DINOv2's weights ({NAMES[size]}) are not in the cache and cannot be downloaded",
            "a connection to huggingface.co for the first use",
            "connect and try again, or start from other weights or none (model.init_from=[...])",
        ) from error
