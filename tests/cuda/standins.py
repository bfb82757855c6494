"""What is no operator of torch: `torch.cuda`, the choice among attention kernels, Triton, gsplat.

`install` puts stand-ins in their place for the whole process, before pmsplat is imported.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch.utils import _foreach_utils

from . import shim
from .device import FakeDevice, on_device, real
from .gsplat_kernels import Kernels
from .ledger import Ledger

CAPABILITY = (9, 0)
MEMORY = 80 * 2**30
LARGEST_GRID = (2**31 - 1, 65535, 65535)
aten = torch.ops.aten


def install(device: FakeDevice) -> None:
    """Everything that asks for a GPU meets `device`. Once per process."""
    shim.arm()
    _replace_cuda(device.ledger)
    _replace_choices()
    nn.Module._apply = _applying(nn.Module._apply)
    _replace_triton(device.ledger)
    _replace_gsplat(device.ledger)


def _replace_cuda(ledger: Ledger) -> None:
    properties = types.SimpleNamespace(
        name="fake", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY,
        multi_processor_count=132, warp_size=32, shared_memory_per_block_optin=232448,
    )  # fmt: skip
    answers = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "is_bf16_supported": True, "get_device_capability": CAPABILITY, "empty_cache": None,
        "get_device_name": "fake", "get_device_properties": properties, "set_device": None,
        "mem_get_info": (MEMORY, MEMORY), "init": None, "_lazy_init": None, "memory_stats": {},
        "reset_peak_memory_stats": None, "get_per_process_memory_fraction": 1.0,
        "manual_seed": None, "manual_seed_all": None, "set_rng_state_all": None,
        "_exchange_device": 0, "_maybe_exchange_device": 0, "set_rng_state": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, _answering(answer))
    state = torch.Generator().get_state()
    torch.cuda.get_rng_state = lambda device="cuda": state.clone()
    torch.cuda.get_rng_state_all = lambda: [state.clone()]
    torch.cuda.synchronize = lambda device=None: ledger.wait("synchronize")
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(torch.cuda, name, lambda device=None: ledger.alive)
    _replace_streams(ledger)
    fake_tensor.init_gpu_context = lambda device: None
    torch.Generator = _Generator  # pyright: ignore[reportAttributeAccessIssue]
    torch.save = _saving(torch.save)


def _replace_streams(ledger: Ledger) -> None:
    """Streams, which do nothing, and graphs, in whose capture the host must not wait."""
    cuda: Any = torch.cuda
    none = {name: _answering(None) for name in ("wait_stream", "wait_event", "record_event")}
    synchronize = _answering(None)
    stream = types.SimpleNamespace(cuda_stream=0, synchronize=synchronize, query=_answering(True))
    vars(stream).update(none)

    @contextlib.contextmanager
    def capture(*args: Any, **kwargs: Any) -> Iterator[None]:
        ledger.capturing = True
        try:
            yield
        finally:
            ledger.capturing = False

    cuda.Stream = cuda.current_stream = cuda.default_stream = _answering(stream)
    cuda.stream = lambda stream: contextlib.nullcontext(stream)
    cuda.graph_pool_handle = _answering((0, 0))
    replay = functools.partial(ledger.launch, "graph")
    cuda.CUDAGraph = lambda *args: types.SimpleNamespace(replay=replay, reset=_answering(None))
    cuda.graph, cuda.is_current_stream_capturing = capture, lambda: ledger.capturing


def _answering(answer: Any) -> Any:
    return lambda *args, **kwargs: answer


class _Generator(torch.Generator):
    """A generator of the CPU that says it is of CUDA where that was asked for."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.place


def _saving(save: Any) -> Any:
    """torch.save of what is on the device: made-up numbers of the CPU."""
    return functools.wraps(save)(lambda value, *args, **kwargs: save(real(value), *args, **kwargs))


def _applying(apply: Any) -> Any:
    """`Module._apply`, which swaps fake tensors and fails where anything refers to them."""

    def replacing(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        if not any(map(on_device, self._parameters.values())):
            return apply(self, fn, recurse)
        for child in self.children() if recurse else ():
            child._apply(fn)
        for name, p in self._parameters.items():
            if p is not None:
                with torch.no_grad():
                    new = fn(p)
                self._parameters[name] = p if new is p else nn.Parameter(new, p.requires_grad)
        for name, b in self._buffers.items():
            self._buffers[name] = None if b is None else fn(b)
        return self

    return replacing


def _replace_choices() -> None:
    """Choices that torch makes by asking the driver."""
    # The lists of fused optimisers and of clipping know real tensors only.
    _foreach_utils._foreach_supported_types.append(fake_tensor.FakeTensor)
    native: Any = torch._C
    choose = native._select_conv_backend

    def convolution(x: Tensor, weight: Tensor, **how: Any) -> Any:
        """cuDNN, and torch's own kernel for single channels of float32."""
        if not on_device(x):
            return choose(x, weight, **how)
        single = how["groups"] == x.shape[1] > 1 and x.dtype == torch.float32
        backends = native._ConvBackend
        if single and not how["transposed"]:
            return backends.CudaDepthwise2d
        return backends.CudnnTranspose if how["transposed"] else backends.Cudnn

    native._select_conv_backend = convolution
    original = torch.nn.functional.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *more: Any, **how: Any):
        """Flash attention for the half types without a mask, else the memory-efficient kernel."""
        if not on_device(q):
            return original(q, k, v, attn_mask, *more, **how)
        if torch.is_autocast_enabled("cuda"):
            q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
        scale = how.get("scale")
        if attn_mask is None and q.dtype in (torch.bfloat16, torch.float16):
            return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
        trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        bias = None if attn_mask is None else attn_mask.expand(*q.shape[:-1], k.shape[-2])
        return aten._scaled_dot_product_efficient_attention(q, k, v, bias, trains, scale=scale)[0]

    torch.nn.functional.scaled_dot_product_attention = attention


def _replace_triton(ledger: Ledger) -> None:
    """Launches of Triton's kernels: checked, counted and kept for `compilation`."""
    if importlib.util.find_spec("triton") is None:
        return
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    from . import compilation

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        name, given = self.__name__, dict(zip(self.arg_names, args, strict=False)) | kwargs
        for argument, value in given.items():
            on_cpu = isinstance(value, Tensor) and not on_device(value)
            assert not on_cpu, f"{name}: {argument} is on the CPU"
        size: tuple[int, ...] = tuple(grid(given) if callable(grid) else grid)  # pyright: ignore
        fits = all(0 < n <= most for n, most in zip(size, LARGEST_GRID, strict=False))
        assert fits, f"{name}: a grid of {size}"
        assert "enable_fp_fusion" in kwargs, f"{name}: launched by other means than cuda.launch"
        launch = compilation.Launch.of(self, args, kwargs)
        ledger.kernels.setdefault(launch.kernel, {})[launch.key(self)] = launch.to_json()
        ledger.launch(f"triton {name}")

    def tuned(self: Any, *args: Any, **kwargs: Any) -> None:
        return self.fn.run(*args, **kwargs, **self.configs[0].kwargs)

    JITFunction.run = run
    Autotuner.run = tuned
    target = GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)
    answers = {"get_current_device": 0, "get_current_stream": 0, "get_current_target": target}
    active: Any = types.SimpleNamespace(**{k: _answering(v) for k, v in answers.items()})
    driver.set_active(active)


def _replace_gsplat(ledger: Ledger) -> None:
    """gsplat's extension; its Python is the real one."""
    if importlib.util.find_spec("gsplat") is None:
        return
    backend: Any = types.ModuleType("gsplat.cuda._backend")
    backend._C = Kernels(ledger)
    sys.modules["gsplat.cuda._backend"] = backend
    package: Any = importlib.import_module("gsplat.cuda")
    package._backend = backend
