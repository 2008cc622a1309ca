"""Training by several processes: each takes its rows of a batch, and all of them know the whole result.

Lightning Fabric starts the processes, as torchrun launched them, and carries the tensors. The methods know nothing of
it: what they call returns the whole batch, with a gradient, so that the loss is the one that a single process has.
"""

from __future__ import annotations

import atexit
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ferlab.config import Config
from ferlab.errors import FerlabError


@functools.cache
def fabric() -> Any:
    """Fabric, connected to the other processes that torchrun started, or None in a process of its own.

    Raises FerlabError where Fabric is not installed.
    """
    launched = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    if not launched or os.environ["WORLD_SIZE"] == "1":
        return None
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise FerlabError('Several processes need Lightning Fabric: pip install "ferlab[parallel]".') from error
    on_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    connected = Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", strategy="ddp", devices=on_machine,
                       num_nodes=int(os.environ["WORLD_SIZE"]) // on_machine)
    connected.launch()
    atexit.register(torch.distributed.destroy_process_group)  # a process that ends while connected may abort
    warnings.filterwarnings("ignore", "torch.distributed.nn.functional")  # Fabric's, which a later one will mend
    return connected


def leads() -> bool:
    """Whether this process is the one that writes and speaks."""
    return fabric() is None or fabric().is_global_zero


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if fabric() is not None:
        return fabric().device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(config: Config) -> str:
    """What a training multiplies in: "bfloat16" where the device has it and the settings allow it, or "float32"."""
    if device().type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast and config.precision == "auto" else "float32"


def by_rows(function: Callable[..., Any], *inputs: Tensor | None) -> Any:
    """``function(*inputs)``, tensors [N, ...] or tuples of them, of which each process computes its own rows.

    inputs: tensors [N, ...], all known to every process; None stays None. Every process receives the whole result; its
    gradients go back to the process that a row came from, summed over the processes.

    Raises FerlabError where rows that are learned from cannot be shared equally.
    """
    count = next(len(x) for x in inputs if x is not None)
    if fabric() is None or not count:
        return function(*inputs)
    if torch.is_grad_enabled() and count % fabric().world_size:
        raise FerlabError(f"{count} faces of a batch (or of the share of it that is masked) cannot be parted equally "
                          f"among {fabric().world_size} processes: give another batch_size, or fewer processes.")
    share = -(-count // fabric().world_size)
    own = (torch.arange(share) + fabric().global_rank * share).clamp(max=count - 1)  # the last fills up
    return _gather(function(*(None if x is None else x[own.to(x.device)] for x in inputs)), count)


def _gather(own: Any, count: int) -> Any:
    if isinstance(own, tuple):
        parts = [_gather(part, count) for part in own]
        return type(own)(*parts) if hasattr(own, "_fields") else tuple(parts)
    return fabric().all_gather(own, sync_grads=own.requires_grad).flatten(0, 1)[:count]


def share(network: nn.Module, batch_size: int) -> None:
    """Let the processes share what the parts of a network do ``by_face``, and their batch statistics.

    Raises FerlabError where they cannot have equal parts of a batch.
    """
    if fabric() is None:
        return
    if batch_size % fabric().world_size:
        raise FerlabError(f"batch_size is {batch_size}: give a multiple of the {fabric().world_size} processes.")
    for module in network.modules():
        for name in getattr(module, "by_face", ()):
            setattr(module, name, functools.partial(by_rows, getattr(module, name)))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = functools.partial(normalise, module)  # type: ignore[method-assign]


def normalise(norm: Any, x: Tensor) -> Tensor:
    """BatchNorm of rows [B, C, ...]: in training, all processes' rows in equal parts make mean and variance.

    PyTorch's SyncBatchNorm does the same, but on GPUs only.
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    exact, dims = x.to(norm.weight.dtype), [0, *range(2, x.ndim)]
    parts = torch.stack([exact.mean(dims), exact.var(dims, unbiased=False)])
    means, variances = fabric().all_gather(parts, sync_grads=parts.requires_grad).unbind(1)  # [processes, C]
    mean = means.mean(0)
    variance = (variances + (means - mean) ** 2).mean(0)
    if norm.track_running_stats:
        count = len(means) * x.numel() // x.shape[1]
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.detach(), norm.momentum)
        norm.running_var.lerp_(variance.detach() * count / (count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shape = [1, -1] + [1] * (x.ndim - 2)
    return (exact * scale.view(shape) + (norm.bias - mean * scale).view(shape)).to(x.dtype)


def mean_gradients(network: nn.Module) -> None:
    """The mean over the processes of every gradient.

    Each row's gradient was summed over as many equal losses as there are processes, so the mean is the gradient of one.
    """
    if fabric() is None:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    together = fabric().all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))
