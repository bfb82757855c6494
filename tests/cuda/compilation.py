"""Triton's kernels compiled for GPUs that are not here, as they were launched on the fake device.

A launch is kept as JSON: kernel, arguments (types in place of tensors) and options. Triton's own
rules turn it into what would be compiled at that launch: integers of 1 and addresses divisible by
16 are special, for example. `ptxas -v` says how many registers a kernel takes and spills.
"""

import functools
import importlib
import json
import pkgutil
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from . import fleet

ALIGNED = 16  # bytes; Triton assumes more of such addresses
FIND = "find"
TF32_SINCE = 80  # the capability
PACKAGES = ("pmsplat.kernels", "pmsplat.render")


@dataclass(frozen=True)
class Launch:
    """A launch of `kernel`, "module:name"."""

    kernel: str
    args: list[Any]
    kwargs: dict[str, Any]

    @staticmethod
    def of(function: Any, args: tuple, kwargs: dict[str, Any]) -> "Launch":
        """The launch of a kernel with these arguments."""
        return Launch(
            f"{function.module}:{function.__name__}",
            [_describe(value) for value in args],
            {name: _describe(value) for name, value in kwargs.items()},
        )

    @property
    def label(self) -> str:
        """The kernel with the types of its tensors, by which its bounds differ."""
        values = [*self.args, *self.kwargs.values()]
        types = {
            value["tensor"] for value in values if isinstance(value, dict) and "tensor" in value
        }
        return f"{self.kernel} {' '.join(sorted(types))}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def key(self, function: Any) -> str:
        """What Triton compiles only once."""
        _, specialization, options = self._bind(function, GPUTarget("cuda", 90, 32))
        return f"{specialization} {options}"

    def on(self, capability: int) -> "Launch":
        """The same as the package makes it there: float32 as it is, where there is no TF32."""
        if capability >= TF32_SINCE or self.kwargs.get("PRECISION") != "tf32x3":
            return self
        return replace(self, kwargs=self.kwargs | {"PRECISION": "ieee"})

    def source(self, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
        """What is compiled, and with which options."""
        module, _, name = self.kernel.partition(":")
        function = getattr(importlib.import_module(module), name)
        bound, specialization, options = self._bind(function, target)
        backend = make_backend(target)
        options, signature, constants, attributes = function._pack_args(
            backend, dict(options), bound, specialization, options
        )
        source = ASTSource(function, signature, constants, attributes)
        return source, options.__dict__

    def _bind(self, function: Any, target: GPUTarget) -> tuple[Any, Any, Any]:
        binder = _binder(function, target)
        kwargs = {name: _value(given) for name, given in self.kwargs.items()}
        return binder(*map(_value, self.args), **kwargs)


@functools.cache
def _binder(function: Any, target: GPUTarget) -> Any:
    return create_function_from_signature(function.signature, function.params, make_backend(target))


def _describe(value: Any) -> Any:
    """A value of an argument as JSON has it."""
    if isinstance(value, torch.Tensor):
        offset = value.storage_offset() * value.element_size()
        return {"tensor": str(value.dtype).removeprefix("torch."), "offset": offset % ALIGNED}
    if isinstance(value, torch.dtype | triton.language.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, triton.language.constexpr):
        return _describe(value.value)
    assert value is None or isinstance(value, bool | int | float | str), f"an argument {value!r}"
    return value


def _value(given: Any) -> Any:
    """An argument that Triton looks at as at the one that was described."""
    if not isinstance(given, dict):
        return given
    if "dtype" in given:
        return triton.language.dtype(given["dtype"])
    dtype, offset = getattr(torch, given["tensor"]), given["offset"]
    return SimpleNamespace(dtype=dtype, data_ptr=lambda: offset)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a GPU: registers a thread, bytes spilled, bytes shared."""

    registers: int
    spills: int
    shared: int


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compiles one launch for one kind of GPU, with Triton's own ptxas."""
    target = GPUTarget("cuda", capability, 32)
    source, options = launch.on(capability).source(target)
    compiled = triton.compile(source, target=target, options=options)
    text: Any = compiled.asm["ptx"]
    arch = re.search(r"\.target (sm_\w+)", text)
    assert arch is not None, "no target in the PTX"
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(text)
        command = [
            get_ptxas(capability).path,
            "-v",
            f"--gpu-name={arch[1]}",
            "-o",
            f"{folder}/kernel.cubin",
        ]
        command += [] if options.get("enable_fp_fusion", True) else ["--fmad=false"]
        said = subprocess.run([*command, str(ptx)], capture_output=True, text=True, check=True)
    used = re.search(r"Used (\d+) registers", said.stderr)
    spills = re.search(r"(\d+) bytes spill stores", said.stderr)
    assert used is not None and spills is not None, said.stderr
    return Resources(int(used[1]), int(spills[1]), compiled.metadata.shared)


def find_kernels() -> list[str]:
    """All Triton kernels of the package, "module:name": functions that no other of them calls."""
    functions: dict[str, Any] = {}
    for package in map(importlib.import_module, PACKAGES):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            path = Path(package.__path__[0]) / f"{info.name.rpartition('.')[2]}.py"
            if "triton" in path.read_text():
                module = importlib.import_module(info.name)
                found = {x for x in vars(module).values() if isinstance(x, JITFunction)}
                functions |= {f"{f.module}:{f.__name__}": f for f in found}
    called = {name for f in functions.values() for name in f.fn.__code__.co_names}
    return sorted(name for name, f in functions.items() if f.__name__ not in called)


def _answer(line: str) -> fleet.Answer:
    """What {"launch": ..., "capability": n} takes of that GPU; to FIND, which kernels there are."""
    if line == FIND:
        return {"kernels": find_kernels()}
    work = json.loads(line)
    launch, capability = Launch(**work["launch"]), work["capability"]
    used = compile_launch(launch, capability)
    return {"kernel": launch.label, "capability": str(capability)} | asdict(used)


if __name__ == "__main__":
    fleet.serve(_answer)
