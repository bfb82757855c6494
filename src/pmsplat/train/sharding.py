"""One model for all devices, each of which keeps a part of it: FSDP2.

Between steps a device holds its part of the weights, of their gradients and of the optimizer's
moments; in a step it has all weights and gradients, but only its own moments. So of n weights in
float32 it takes 16n/d bytes on d devices, and 8n more in a step, instead of 16n. Gradients are the
means over devices, as without.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ..types import Prediction


def strategy(devices: int) -> ModelParallelStrategy:
    """How Lightning trains a model in so many parts; checkpoints are whole, as those of others."""
    return ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False)


class Sharded(nn.Module):
    """`model` in parts, which are brought together for each call of `predict`.

    All devices call it as often as each other. The model keeps its names; its parameters are
    DTensors outside a call.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.model = model
        fully_shard(self, mesh=mesh)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Prediction, list[Tensor]]:
        """The prediction, and its tensors as FSDP can see them, which watches their gradients."""
        prediction: Prediction = self.model(*args, **kwargs)
        tensors: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        return prediction.map(note), tensors

    def predict(self, *args: Any, **kwargs: Any) -> Prediction:
        """What the model predicts, with gradients."""
        return self(*args, **kwargs)[0]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, each device has all weights, and may call `model` itself as it likes."""
        assert isinstance(self, FSDPModule)
        self.unshard()
        try:
            yield
        finally:
            self.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """What this device has of a tensor, which may be in parts."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """A tensor that may be in parts, whole; all devices must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model that may be in parts: then on the CPU, and in the first process.

    All processes must ask together.
    """
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        name: cast(Tensor, x) for name, x in get_model_state_dict(model, options=options).items()
    }


def set_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse; every process has the whole state."""
    if not is_sharded(model):
        model.load_state_dict(state)
        return
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, cast(dict[str, Any], state), options=options)


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model are in parts."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
