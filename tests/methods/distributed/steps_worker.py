"""Steps of each student by DistributedDataParallel and by fully_shard against those of one process, under torchrun.

The processes have half of the batch each, and draws of their own. One process sums what both have.
"""

import copy
import os

import torch
import torch.distributed as dist
from methods.distributed.students import STEPPED, Student, make
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

TAKEN = 3


def half(student: Student, rank: int) -> dict[str, torch.Tensor]:
    return {name: value[4 * rank : 4 * rank + 4] for name, value in student.inputs.items()}


def take_steps(student: Student, model: nn.Module, ranks: list[int]) -> list[float]:
    """The losses of steps with the batches of `ranks`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for step in range(TAKEN):
        optimizer.zero_grad()
        for rank in ranks:
            torch.manual_seed(10 * step + rank)
            loss = student.loss(model, half(student, rank), step) / len(ranks)
            loss.backward()
            losses.append(float(loss.detach()) * len(ranks))
        optimizer.step()
    return losses


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def sharded(student: Student) -> nn.Module:
    for layer in student.layers:
        fully_shard(layer)
    fully_shard(student.model)
    kinds = {type(parameter) for parameter in student.model.parameters()}
    assert all(issubclass(kind, DTensor) for kind in kinds), kinds
    return student.model


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    for method in STEPPED:
        student = make(method)
        single = copy.deepcopy(student.model)
        expected = take_steps(student, single, [0, 1])
        for kind in ("DDP", "fully_shard"):
            own = make(method)
            if kind == "DDP":
                model: nn.Module = DistributedDataParallel(own.model, find_unused_parameters=True)
            else:
                model = sharded(own)
            found = take_steps(own, model, [rank])
            torch.testing.assert_close(found, expected[rank::2], rtol=1e-4, atol=1e-5)
            state = {name: whole(value) for name, value in own.model.state_dict().items()}
            for name, value in single.state_dict().items():
                torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-5, msg=f"{method} {kind} {name}")
            if rank == 0:
                print(method, kind, flush=True)
    dist.barrier()
    os._exit(0)  # torch's FSDP2 over gloo now and then aborts when the interpreter ends


if __name__ == "__main__":
    main()
