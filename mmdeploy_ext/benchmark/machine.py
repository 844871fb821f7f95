"""The machine that figures were measured on, and how much of it others used meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.versions import versions
from mmdeploy_ext.engines.registry import gpu_name

SIMD = ('avx2', 'avx_vnni', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_int8', 'amx_bf16')
"""Instructions that decide how fast products are, as Linux names them."""
QUIET_SHARE = 0.05
"""Others may use this part of the cores before the figures are called doubtful."""


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    cpu = [*names, platform.processor() or platform.machine()][0]
    flags = next((line for line in lines if line.startswith('flags')), '').split()
    found = versions()
    with contextlib.suppress(ImportError):
        import openvino

        found['openvino'] = openvino.__version__
    return dict(
        cpu=cpu,
        cores=cores(),
        simd=[name for name in SIMD if name in flags],
        gpu=gpu_name(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=found,
    )


def measured_gpu() -> str:
    """Return the name of the GPU that PyTorch, the baseline, can run on; '' without one."""
    import torch

    return gpu_name() if torch.cuda.is_available() else ''


def _busy_s() -> float | None:
    """Return the seconds that all cores together were busy since the start; None where that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path('/proc/stat').read_text(encoding='ascii').split('\n', 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return None


class OtherLoad:
    """Context manager that finds out what `share` of the cores others used; None where that is not known."""

    share: float | None = None

    def __enter__(self) -> OtherLoad:
        self.start = time.perf_counter(), time.process_time(), _busy_s()
        return self

    def __exit__(self, *_: object) -> None:
        wall, own, busy = self.start
        now = _busy_s()
        if busy is not None and now is not None:
            others = (now - busy) - (time.process_time() - own)
            whole = (time.perf_counter() - wall) * (os.cpu_count() or 1)
            self.share = round(min(max(others / whole, 0.0), 1.0), 4)
