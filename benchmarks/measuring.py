"""Time, peak memory and the machine's own peak, measured the same way by all benchmarks."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `run()` over `repeats` runs after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that PyTorch's CPU allocator held at once during `run()`, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    allocations = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in allocations:
        held += change
        peak = max(peak, held)
    return peak


def count_flops(run: Callable[[], Any]) -> int:
    """Floating point operations of matrix products, convolutions and attention in `run()`."""

    # PyTorch counts the attention kernels of GPUs, but not the one of the CPU.
    def flash_attention_on_cpu(
        query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
    ) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: flash_attention_on_cpu}) as counter:
        run()
    return counter.get_total_flops()


def matmul_peak(size: int = 2048, repeats: int = 9) -> float:
    """FLOP/s of a float32 matrix product of `size` x `size`: what this machine can do at best."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / median_seconds(lambda: a @ b, repeats)


def describe_machine() -> str:
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, Python {platform.python_version()}"
    )
