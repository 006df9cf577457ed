"""Precision, and per-image work shared by processes."""

import platform
from typing import Literal

import pytest
import torch

from segcore.processes import Runtime


def test_precision_is_each_run_s_own() -> None:
    layer = torch.nn.Linear(2, 2)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        runtime = Runtime(precision)  # type: ignore[arg-type]
        with runtime.autocast():
            assert layer.to(runtime.device)(torch.ones(1, 2, device=runtime.device)).dtype == expected


@pytest.mark.parametrize(
    ("gpu", "units", "expected"), [(False, False, "fp32"), (True, False, "fp32"), (True, True, "bf16")]
)
def test_auto_is_bf16_only_on_a_gpu_that_has_it(
    gpu: bool, units: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Process:
        device, process_index, num_processes = torch.device("cpu"), 0, 1

        def __init__(self, mixed_precision: str, cpu: bool) -> None:
            assert cpu is not gpu

    monkeypatch.setattr("segcore.processes.Accelerator", Process)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units or including_emulation)
    assert Runtime("auto").precision == expected


@pytest.mark.parametrize(
    ("machine", "units", "precision", "emulates"),
    [
        ("x86_64", {"avx512_bf16": False, "amx_bf16": False}, "bf16", True),
        ("x86_64", {"avx512_bf16": True, "amx_bf16": False}, "bf16", False),
        ("x86_64", {"avx512_bf16": False, "amx_bf16": True}, "bf16", False),
        ("x86_64", {"avx512_bf16": False, "amx_bf16": False}, "auto", False),
        ("x86_64", {}, "bf16", False),
        ("arm64", {"neon": True}, "bf16", False),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs")
def test_a_cpu_that_emulates_bf16_is_told(
    machine: str,
    units: dict[str, bool],
    precision: Literal["auto", "bf16"],
    emulates: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert Runtime(precision).emulates_bf16 == emulates


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 7, 24, 25])
def test_shares_are_merged_in_order_and_cut_into_the_same_batches(
    world: int, block: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(range(count))
    ranks = [object.__new__(Runtime) for _ in range(world)]
    for rank, runtime in enumerate(ranks):
        runtime.rank, runtime.world = rank, world
    shares = [runtime.shard(items, block) for runtime in ranks]
    batches = {tuple(share[i : i + block]) for share in shares for i in range(0, len(share), block)}
    assert batches == {tuple(items[i : i + block]) for i in range(0, count, block)}
    monkeypatch.setattr(Runtime, "gather", lambda self, value: shares)
    assert ranks[-1].merge(shares[-1], block) == items


def test_one_process_gathers_and_sums_alone() -> None:
    runtime = Runtime()
    assert runtime.gather(3) == [3]
    total = runtime.sum(torch.tensor(2.0, requires_grad=True))
    assert total == 2
    assert not total.requires_grad
