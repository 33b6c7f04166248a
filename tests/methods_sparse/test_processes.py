"""Two processes with different images hold the same masks, at every step, for every method."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from halp_iee.train.processes import started
from tests.methods_sparse.worlds import CASES, batch, start

def agree(method, where):
    for name, mask in method.masks.items():
        all_of = [torch.zeros_like(mask, dtype=torch.uint8) for _ in range(2)]
        dist.all_gather(all_of, mask.to(torch.uint8))
        assert torch.equal(*all_of), (where, name)

def train(case, rank):
    # Different seeds: the wrapper gives every process the first one's weights, and the masks must follow too.
    model, optimizer, method = start(case, seed=rank)
    agree(method, (case, "start"))
    wrapped = DistributedDataParallel(model)
    for step in range(16):
        x, y = batch(2 * step + rank)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        method.step()
        agree(method, (case, step))
    assert method.updates or CASES[case][0] == "static"

def without_the_wrapper(rank):
    # Every process has gradients of its own then: they are summed before anything is ranked.
    model, optimizer, method = start("rigl")
    name = method.layers[0].name
    method.weight(name).grad = torch.full_like(method.weight(name), 1.0 if rank == 0 else -3.0)
    assert (method.gradient(name).abs() == 2.0).all()

with started() as processes:
    for case in sys.argv[1:]:
        train(case, processes.rank)
    without_the_wrapper(processes.rank)
threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads  # such a thread can abort the process as it ends
"""

CASES = (
    "rigl", "rigl 2 batches", "rigl 2:4", "set", "srigl ablating", "iee erk", "iee global", "mest em&s",
    "chase channels", "snip",
)  # fmt: skip


def test_masks_are_the_same_in_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, *CASES], cwd=root, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(text[-2000:] for text in printed)
