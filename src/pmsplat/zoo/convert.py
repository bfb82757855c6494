"""Official checkpoints -> our names, once and strictly.

For one building block, each function maps our modules to the official modules that they are made
from: several where their rows were joined into one. The entry of a module covers the modules inside
it. No key may be missing or left over.
"""

import re
from collections import Counter

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.depthsplat import DepthSplat
from ..models.depthsplat2024 import DepthSplat2024, Enlarge, Head
from ..models.mvsplat import FINE_LEVELS, MVSplat
from ..models.resplat import ReSplat
from ..models.updated import Updated
from ..nn.anchors import LAYERS

Names = dict[str, tuple[str, ...]]  # our module -> official modules, without the prefixes below
ENCODER, DEPTH, BACKBONE = "encoder.", "depth_predictor.", "backbone."
# The statistics of a batch norm that are loaded, and the count of batches that is not.
MEAN, COUNT = ".running_mean", ".num_batches_tracked"
# Where in the official encoder the keys of a file may begin: released encoders; encoders alone;
# depth networks, and what DepthSplat's starts from; what MVSplat's starts from.
ROOTS = ("", ENCODER, ENCODER + DEPTH, ENCODER + BACKBONE)


def prefix_names(ours: str, theirs: str, names: dict[str, str | tuple[str, ...]]) -> Names:
    """The same names, below a module of ours and one of theirs."""
    parts = {o: (t,) if isinstance(t, str) else t for o, t in names.items()}
    return {f"{ours}.{o}": tuple(f"{theirs}.{part}" for part in t) for o, t in parts.items()}


def cnn(ours: str, theirs: str) -> Names:
    names: dict[str, str | tuple[str, ...]] = {"stem": "conv1", "out": "conv2"}
    for stage in range(3):
        names[f"stages.{stage}"] = f"layer{stage + 1}"
        names[f"stages.{stage}.0.shortcut"] = f"layer{stage + 1}.0.downsample.0"
    return prefix_names(ours, theirs, names)


def transformer(ours: str, theirs: str, layers: int) -> Names:
    alone, across = "self_attn", "cross_attn_ffn"
    out: Names = {}
    for index in range(layers):
        out |= prefix_names(
            f"{ours}.layers.{index}",
            f"{theirs}.layers.{index}",
            {
                "self_qkv": tuple(f"{alone}.{x}_proj" for x in "qkv"),
                "self_merge": f"{alone}.merge",
                "self_norm": f"{alone}.norm1",
                "cross_q": f"{across}.q_proj",
                "cross_kv": tuple(f"{across}.{x}_proj" for x in "kv"),
                "cross_merge": f"{across}.merge",
                "cross_norm": f"{across}.norm1",
                "mlp": f"{across}.mlp",
                "mlp_norm": f"{across}.norm2",
            },
        )
    return out


def compress(ours: str, theirs: str, block: nn.Module | None) -> Names:
    """ZPressor's block, where a model has it."""
    cross, alone = "cross_attn_layers.0", "self_attn_layers.0"
    out: Names = {}
    for index in range(0 if block is None else LAYERS):
        out |= prefix_names(
            f"{ours}.layers.{index}",
            theirs,
            {
                "cross_norm": f"{cross}.{index}.norm1",
                "support_norm": f"{cross}.{index}.norm2",
                "cross_q": f"{cross}.{index}.projq",
                "cross_kv": f"{cross}.{index}.proj_kv",
                "cross_out": f"{cross}.{index}.proj",
                "self_norm": f"{alone}.{index}.norm",
                "self_qkv": f"{alone}.{index}.to_qkv",
                "mlp": f"{alone}.{index}.mlp",
            },
        )
    return out


def unet(ours: str, theirs: str, levels: int, post_norm: bool = False) -> Names:
    """The official lists number blocks and moves together; the order of normalization and
    convolution decides the numbers."""
    norm, conv1, conv2 = (1, 0, 0) if post_norm else (0, 2, 3)

    def block(our: str, their: str) -> Names:
        inside = {
            "norm1": f"in_layers.{norm}",
            "conv1": f"in_layers.{conv1}",
            "norm2": f"out_layers.{norm}",
            "conv2": f"out_layers.{conv2}",
            "skip": "skip_connection",
        }
        return prefix_names(f"{ours}.{our}", f"{theirs}.{their}", {**inside})

    def attention(our: str, their: str) -> Names:
        inside = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
        return prefix_names(f"{ours}.{our}", f"{theirs}.{their}", {**inside})

    ends = {"stem": "input_blocks.0.0", "norm": f"out.{norm}", "out": f"out.{conv1}"}
    out = prefix_names(ours, theirs, {**ends})
    for level in range(levels):
        down, up = 2 * level + 1, 2 * level
        out |= block(f"encoder.{level}.blocks.0", f"input_blocks.{down}.0")
        out |= prefix_names(
            ours, theirs, {f"encoder.{level}.move": f"input_blocks.{down + 1}.0.op"}
        )
        for i in range(2):
            out |= block(f"decoder.{level}.blocks.{i}", f"output_blocks.{up + i}.0")
        behind = 2 if level == 0 else 1  # the deepest level has its attention in between
        out |= prefix_names(
            ours, theirs, {f"decoder.{level}.move": f"output_blocks.{up + 1}.{behind}.conv"}
        )
    out |= attention(f"encoder.{levels - 1}.attentions.0", f"input_blocks.{2 * levels - 1}.1")
    for i in range(2):
        out |= attention(f"decoder.0.attentions.{i}", f"output_blocks.{i}.1")
        out |= block(f"middle.{i}", f"middle_block.{2 * i}")
    return out


def dpt(ours: str, theirs: str) -> Names:
    names: dict[str, str | tuple[str, ...]] = {
        "project": "projects",
        "resize": "resize_layers",
        "join": "concat_projects",
    }
    for i in range(4):
        names[f"reduce.{i}"] = f"scratch.layer{i + 1}_rn"
        names[f"fuse.{i}.lateral"] = f"scratch.refinenet{i + 1}.resConfUnit1"
        names[f"fuse.{i}.refine"] = f"scratch.refinenet{i + 1}.resConfUnit2"
        names[f"fuse.{i}.out"] = f"scratch.refinenet{i + 1}.out_conv"
    return prefix_names(ours, theirs, names)


def depth_network(model: DepthSplat | ReSplat) -> Names:
    """`depth.*` of our models from the official depth predictor."""
    layout = model.layout
    pyramid = {"up": "stages.1.0", "smooth": "stages.1.2"}
    out = {
        **cnn("cnn", "backbone"),
        **compress("compress", "zipmatch", model.depth.compress),
        **transformer("transformer", "transformer", layout.transformer_layers),
        **prefix_names("matched_pyramid", "mv_pyramid", {**pyramid}),
        **prefix_names("vit_pyramid", "mono_pyramid", {**pyramid}),
        **dpt("refine", "upsampler"),
        "residual": ("upsampler.scratch.output_conv",),
        "vit.vit": ("pretrained",),
    }
    for scale in range(layout.scales):
        ours, theirs = f"regressors.{scale}", f"regressor.{scale}"
        out |= unet(f"{ours}.unet", f"{theirs}.3", 3 + scale)
        out |= {
            f"{ours}.stem": (f"{theirs}.0",),
            f"{ours}.norm": (f"{theirs}.1",),
            f"{ours}.out": (f"{theirs}.4",),
            f"{ours}.residual": (f"regressor_residual.{scale}",),
            f"{ours}.logits": (f"depth_head.{scale}",),
        }
    return {f"depth.{o}": tuple(DEPTH + part for part in t) for o, t in out.items()}


def depthsplat(model: DepthSplat) -> Names:
    """The encoder of 2025."""
    return {
        **depth_network(model),
        **dpt("head.features", "feature_upsampler"),
        "head.regressor": ("gaussian_regressor",),
        "head.out": ("gaussian_head",),
    }


def depthsplat2024(model: DepthSplat2024) -> Names:
    """The encoder of 2024."""
    out = depth_network(model)
    if model.head is None:
        return out
    assert isinstance(model.head, Head)
    for scale, enlarge in enumerate(model.head.enlarge):
        assert isinstance(enlarge, Enlarge)
        ours, theirs = f"head.enlarge.{scale}", f"feature_upsampler.upsampler.{scale}"
        out |= {f"{ours}.project": (f"{theirs}.0",)}
        for step in range(len(enlarge.steps)):
            out |= {f"{ours}.steps.{step}": (f"{theirs}.{3 * step + 2}",)}
    levels = len(model.head.unet.encoder)
    return {
        **out,
        **unet("head.unet", "gaussian_regressor.3", levels),
        "head.stem": ("gaussian_regressor.0",),
        "head.norm": ("gaussian_regressor.1",),
        "head.smooth": ("gaussian_regressor.4",),
        "head.out": ("gaussian_head",),
    }


def mvsplat(model: MVSplat) -> Names:
    """The encoder of MVSplat."""
    coarse, fine = f"{DEPTH}corr_refine_net", f"{DEPTH}refine_unet"
    return {
        **cnn("cnn", f"{BACKBONE}backbone"),
        **compress("compress", f"{BACKBONE}zipmatch", model.compress),
        **transformer("transformer", f"{BACKBONE}transformer", model.cfg.transformer_layers),
        **unet("regressor.unet", f"{coarse}.3", 3, post_norm=True),
        "regressor.stem": (f"{coarse}.0",),
        "regressor.norm": (f"{coarse}.1",),
        "regressor.out": (f"{coarse}.4",),
        "regressor.residual": (f"{DEPTH}regressor_residual",),
        "regressor.logits": (f"{DEPTH}depth_head_lowres",),
        "up": (f"{DEPTH}upsampler.0",),
        "narrow": (f"{DEPTH}proj_feature",),
        **unet("unet", f"{fine}.3", FINE_LEVELS, post_norm=True),
        "stem": (fine,),
        "out": (f"{DEPTH}to_gaussians",),
        "residual": (f"{DEPTH}to_disparity",),
    }


def neighbor_block(ours: str, theirs: str) -> Names:
    names = {"norm": "norm1", "qkv": "attn.qkv", "out": "attn.proj"}
    return prefix_names(ours, theirs, {**names, **_mlp("mlp")})


def global_block(ours: str, theirs: str) -> Names:
    names = {
        "join": "proj1",
        "join_norm": "norm1",
        "tokens.norm": "attn.norm1",
        "tokens.qkv": "attn.attn.qkv",
        "tokens.out": "attn.attn.proj",
        "split": "proj2",
        "split_norm": "norm2",
        "smooth": "conv",
    }
    return prefix_names(ours, theirs, {**names, **_mlp("tokens.mlp", "attn.")})


def _mlp(ours: str, theirs: str = "") -> dict[str, str]:
    """The MLP of a block, whose norm is the block's second one there."""
    return {ours: f"{theirs}mlp", f"{ours}.norm": f"{theirs}norm2"}


def resplat(model: ReSplat) -> Names:
    """The initial model, and the update where there is one."""
    out = {
        **depth_network(model),
        "points.regressor": ("gaussian_regressor",),
        "points.project": ("proj",),
        "head.hidden": ("gaussian_head.0",),
        "head.out": ("gaussian_head.2",),
    }
    for i in range(len(model.points.near)):
        out |= neighbor_block(f"points.near.{i}", f"pt.blocks.{i}")
        out |= global_block(f"points.all.{i}", f"pt.mv_blocks.{i}")
    return out if model.update is None else out | update(model.update)


def update(module: nn.Module) -> Names:
    """The update, as the part `update` of a model."""
    names = {
        "condition": "proj",
        "features": "feature",
        "color": "rgb_error_proj.0",
        "color_norm": "rgb_error_proj.1",
        "join": "module.0.linear",
        "head": "head",
    }
    out: Names = {f"update.{o}": (f"update_{t}",) for o, t in names.items()}
    out |= global_block("update.views", "update_error_attn.0")
    for i in range(len(list(module.get_submodule("blocks").children()))):
        out |= neighbor_block(f"update.blocks.{i}", f"update_module.1.blocks.{i}")
    return out


def names_of(model: nn.Module) -> Names:
    """The official modules that each module of `model` is made from, but for another's base."""
    if isinstance(model, ReSplat):
        return resplat(model)
    if isinstance(model, Updated):
        assert model.update is not None
        return update(model.update)
    if isinstance(model, DepthSplat2024):
        return depthsplat2024(model)
    if isinstance(model, DepthSplat):
        return depthsplat(model)
    assert isinstance(model, MVSplat), type(model)
    return mvsplat(model)


def official_keys(name: str, names: Names) -> list[str]:
    """The official keys that our parameter `name` is made of, in order."""
    module = name
    while module not in names:
        module = module.rpartition(".")[0]
        assert module, f"no rule for {name}"
    return [ENCODER + part + name[len(module) :] for part in names[module]]


def reorder_inputs(name: str, value: Tensor, model: nn.Module) -> Tensor:
    """A parameter with its input channels in our order.

    The official network concatenates its maps differently in one place: with two scales from 1/4,
    its finest dense level has CNN, matched, depth, ViT; ours, as on all other levels, CNN, ViT,
    matched, depth.
    """
    if not isinstance(model, DepthSplat) or not name.endswith("join.0.weight"):
        return value
    layout = model.layout
    if (layout.scales, layout.lowest) != (2, 4):
        return value
    cnn = layout.cnn_widths[0] + layout.cnn_widths[1]
    matched = layout.width // 2 + (1 if name.startswith("depth.") else 0)
    vit = layout.dpt_widths[0][0]
    official = list(range(cnn + matched + vit))
    return value[:, official[:cnn] + official[cnn + matched :] + official[cnn : cnn + matched]]


def place_names(tensors: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """The tensors of a file under official names, of which `known` are wanted.

    A file may put anything before its names (`model.`, `net.`, ...) and begin them at any of ROOTS.
    What most known names have before them is taken off, the root is added, and tensors that do not
    have it before them are left out.
    """
    votes: Counter[tuple[str, str]] = Counter()
    for key in tensors:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", key))]
        votes.update(
            (key[:start], root) for root in ROOTS for start in starts if root + key[start:] in known
        )
    if not votes:
        return tensors
    # Of equal votes, the shorter prefix: `encoder.` is a prefix and also a root.
    prefix, root = max(votes, key=lambda it: (votes[it], -len(it[0])))
    return {
        root + key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)
    }


def convert(official: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model` from an official one of the same architecture.

    Tensors beside the encoder (a training checkpoint holds networks of losses) are ignored, and so
    is how many batches the statistics of a norm were taken from. Raises UserError naming the first
    key that is missing, left over, or of another shape.
    """
    # Find the official keys of each of our parameters, and the tensors that they name.
    names = names_of(model)
    parts = {name: official_keys(name, names) for name in model.state_dict()}
    known = {key for keys in parts.values() for key in keys}
    counts = {key.removesuffix(MEAN) + COUNT for key in known if key.endswith(MEAN)}
    left = {
        key: value
        for key, value in place_names(official, known).items()
        if key.startswith(ENCODER) and key not in counts
    }

    # Fill our parameters; every official key is used once.
    state = {}
    for name, wanted in model.state_dict().items():
        keys = parts[name]
        for key in keys:
            if key not in left:
                raise _mismatch(f"a checkpoint without {key!r}", "that parameter")
        value = join_parts([left.pop(key) for key in keys], wanted)
        if value.shape != wanted.shape:
            raise _mismatch(f"{keys[0]!r} of shape {list(value.shape)}", f"{list(wanted.shape)}")
        state[name] = reorder_inputs(name, value, model)
    if left:
        raise _mismatch(f"{next(iter(left))!r} in the checkpoint", "no such parameter")
    return state


def join_parts(parts: list[Tensor], wanted: Tensor) -> Tensor:
    """One parameter of ours from its official parts."""
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    while value.ndim > wanted.ndim and value.shape[-1] == 1:
        value = value[..., 0]  # their convolutions of width one are our linear layers
    return value


def _mismatch(got: str, wanted: str) -> UserError:
    return UserError(got, wanted, "choose the model that the file is of")
