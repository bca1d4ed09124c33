"""The processes that train one student together, each on a part of its rows and of a step's tokens (FSDP2).

    ranks = Ranks()                                    # this process alone: everything below does nothing
    ranks = join(rank, count, init_method, device)     # one of several

Every rank is given the same samples and makes the same calls in the same order. Gradients are summed, not averaged: the
loss is over the global count of tokens already.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from limbeck.errors import LimbeckError, LostLearnerError, ModelError
from limbeck.learners.batch import Batch, MicroBatch
from limbeck.learners.lifeline import Lifeline
from limbeck.models.causal_lm import CausalLM, first_line
from limbeck.models.shards import make_inside, standing_in
from limbeck.models.spread import blocks_of

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # of collectives: whether a rank lives is known from its lifeline, however long it works
ARRIVAL = timedelta(minutes=10)  # until the last rank has come
M_MMAP_THRESHOLD, LARGE = -3, 2**20  # glibc's malloc.h; bytes of a tensor
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SIOCGIFADDR = 0x8915  # of Linux: the address of an interface


@dataclass(frozen=True)
class Sharding:
    """How parameters are kept and gathered."""

    gathered: torch.dtype | None = None  # what is computed in, where it is not that of the rows
    offload: bool = False  # the rows lie in the memory of the CPU
    adapted: bool = False  # what is trained are adapters, which keep the dtype that they were made in


class Ranks:
    """A process alone, or one of several where there is a `mesh`."""

    def __init__(
        self, mesh: DeviceMesh | None = None, lifeline: Lifeline | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.mesh, self.lifeline = mesh, lifeline
        self.dtype = dtype  # of the rows that each rank keeps, and of sums of gradients
        self.count = 1 if mesh is None else mesh.size()
        self.rank = 0 if mesh is None else mesh.get_local_rank()

    @property
    def is_first(self) -> bool:
        """Whether this rank answers for all, and writes."""
        return self.rank == 0

    def shard(self, lm: CausalLM, how: Sharding) -> None:
        """Keep this rank's rows of every parameter, and let go of the others. Raises `ModelError`."""
        if self.mesh is None:
            return
        try:
            _shard(lm, self.mesh, self.dtype, how)
        except (ValueError, NotImplementedError) as error:
            raise ModelError(f"{lm.name} cannot be trained by several ranks: {first_line(error)}.") from error
        lm.run_on, lm.run_in = torch.device(self.mesh.device_type), how.gathered
        if lm.run_on.type == "cuda":
            lm.run_on = torch.device("cuda", torch.cuda.current_device())

    @contextmanager
    def unread(self, lm: CausalLM) -> Iterator[None]:
        """Of several ranks: parameters of shapes alone, for adapters to be laid beside them.

        Nothing is read from the files, and adapters are not drawn in the files' narrower dtype.
        """
        shapes = (
            {}
            if self.mesh is None
            else {p: torch.zeros((), dtype=self.dtype).expand(p.shape) for p in lm.model.parameters()}
        )
        with standing_in(shapes):
            yield

    def own(self, batch: Batch) -> Iterator[MicroBatch | None]:
        """This rank's micro-batches of a step; None for a pass that it makes only because others do."""
        for first in range(0, len(batch.micro), self.count):
            place = first + self.rank
            yield self.together(partial(_micro_of, batch, place))

    def sum(self, values: Tensor) -> Tensor:
        """[...] the sum over all ranks, on each of them."""
        if self.mesh is not None:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """What each rank gave, on the first; nothing on the others."""
        if self.mesh is None:
            return [value]
        found: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(value, found, dst=0)
        return found or []

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Around whatever ranks do together. Raises `LostLearnerError` where it failed because one of them is gone."""
        try:
            yield
        except LimbeckError:
            raise
        except Exception as error:
            if self.lifeline is not None and (isinstance(error, dist.DistError) or self.lifeline.is_cut()):
                raise LostLearnerError(
                    f"{what}: another rank of the learner is gone ({first_line(error)}). The weights are those of the "
                    "last checkpoint: resume from it."
                ) from error
            raise

    def together(self, part: Callable[[], T]) -> T:
        """What `part` returns, which one rank may fail at and others not: where one fails, all raise its error."""
        value: T | None = None
        error: Exception | None = None
        try:
            value = part()
        except LostLearnerError:
            raise
        except Exception as raised:
            error = raised
        if self.count > 1 and self.sum(torch.tensor(float(error is not None))).item():
            errors: list[Exception | None] = [None] * self.count
            dist.all_gather_object(errors, error)
            error = error or next(other for other in errors if other is not None)
        if error is not None:
            raise error
        return cast(T, value)

    def close(self) -> None:
        """Leave the group; all ranks do. A process should end by `os._exit` then: torch's threads may still run."""
        if self.lifeline is not None:
            self.lifeline.close()
        if self.mesh is not None:
            dist.destroy_process_group()


def _micro_of(batch: Batch, place: int) -> MicroBatch | None:
    return batch.micro[place] if place < len(batch.micro) else None


def join(rank: int, count: int, init_method: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Ranks:
    """Meet the other ranks; `init_method` is "tcp://host:port" of the first, or "file:///path" on one machine.

    Raises `LostLearnerError` where not all of them come.
    """
    url = urlsplit(init_method)
    interface = "lo" if url.hostname in LOOPBACK or url.scheme == "file" else _interface_towards(url.hostname or "")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
        os.environ.setdefault(name, interface)  # else they take what the host's own name stands for: often loopback
    if device.type == "cpu":
        _give_back_memory()
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store = _store(rank, count, init_method)
        lifeline = Lifeline.of(rank, count, store, url.hostname or LOOPBACK[0], ARRIVAL.total_seconds())
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        return Ranks(init_device_mesh(device.type, (count,)), lifeline, dtype)
    except (dist.DistError, RuntimeError, OSError) as error:
        raise LostLearnerError(
            f"rank {rank} of {count} did not meet the others at {init_method}: {first_line(error)}"
        ) from error


def _interface_towards(host: str) -> str:
    """The network interface by which this machine reaches `host`; "" where that is not known."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # one without an address
                    if fcntl.ioctl(probe, SIOCGIFADDR, name.encode().ljust(256, b"\0"))[20:24] == own:
                        return name
    except (ImportError, OSError):  # no Linux, no IPv4
        pass
    return ""


def _give_back_memory() -> None:
    """Let large tensors that are freed go back to the system at once.

    A rank gathers and frees block after block. Glibc would keep most of that between smaller pieces that live on: more
    than the whole model in the end. Elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def _store(rank: int, count: int, init_method: str) -> Any:
    url = urlsplit(init_method)
    if url.scheme == "file":
        return FileStore(url.path, count)
    assert url.scheme == "tcp", init_method
    assert url.hostname is not None, init_method
    return TCPStore(url.hostname, url.port or 0, count, is_master=rank == 0, timeout=ARRIVAL)


def _shard(lm: CausalLM, mesh: DeviceMesh, dtype: torch.dtype, how: Sharding) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ModelError(f"several ranks need torch 2.8 or newer, this is {torch.__version__}. Install a newer torch.")
    blocks = blocks_of(lm.model)
    _check_apart(lm, blocks)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if how.offload else OffloadPolicy()
    reduced = torch.promote_types(dtype, torch.float32)  # a sum over ranks has to be finer than narrow weights
    policy = MixedPrecisionPolicy(param_dtype=how.gathered, reduce_dtype=reduced)
    for module in (*blocks, lm.model):
        name = type(module).__name__
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
        type(module).__name__ = name  # FSDP makes a class of it, by whose name nobody knows it
        make_inside(module)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if mesh.device_type == "cpu":  # nothing is gathered sooner by gathering it ahead
            module.set_modules_to_backward_prefetch([module])

    def kept(tensor: Tensor) -> Tensor:
        stays = not isinstance(tensor, DTensor) or (how.adapted and tensor.requires_grad)  # a buffer, an adapter
        return tensor if stays else tensor.to(dtype)

    lm.model._apply(kept)
    if mesh.device_type != "cpu":
        for module in lm.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(mesh.device_type)


def _check_apart(lm: CausalLM, blocks: Sequence[nn.Module]) -> None:
    """Raises `ModelError` where a weight is of two layers: each would get a part of its gradient."""
    owner: dict[nn.Parameter, int] = {}
    groups = [list(block.parameters()) for block in blocks]
    inner = {parameter for group in groups for parameter in group}
    within = {id(module) for block in blocks for module in block.modules()}
    outside = [module for module in lm.model.modules() if id(module) not in within]
    groups.append([parameter for module in outside for parameter in module.parameters(recurse=False)])
    shared = [name for name, p in lm.model.named_parameters() if p in inner and any(p is q for q in groups[-1])]
    for number, group in enumerate(groups[:-1]):
        shared += [str(list(p.shape)) for p in group if owner.setdefault(p, number) != number]
    if shared:
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} shares a weight between layers ({shared[0]}), which several ranks "
            "cannot train. Set cluster.learners = 1."
        )
