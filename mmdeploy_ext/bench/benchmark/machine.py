"""The machine that measures, and how much of it other processes use."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.source_code import versions
from mmdeploy_ext.engines.registry import gpu_name

SIMD = ('avx2', 'avx_vnni', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_int8', 'amx_bf16')
"""Instruction sets that decide how fast matrix products are, as Linux names them."""
QUIET_SHARE = 0.05
"""Figures are doubtful above this share."""


def cores() -> int:
    """Cores that this process may use; Linux only."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Entry of the machine in a benchmark's JSON file."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    cpu = next(names, platform.processor() or platform.machine())
    flags = next((line for line in lines if line.startswith('flags')), '').split()
    package_versions = versions()
    with contextlib.suppress(ImportError):
        import openvino

        package_versions['openvino'] = openvino.__version__
    return dict(
        cpu=cpu,
        cores=cores(),
        simd=[name for name in SIMD if name in flags],
        gpu=gpu_name(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=package_versions,
    )


def _busy_s() -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path('/proc/stat').read_text(encoding='ascii').split('\n', 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return None


def load_notes(other_load: float | None) -> list[str]:
    """A note if other processes used more than `QUIET_SHARE` of the cores."""
    if other_load is None or other_load <= QUIET_SHARE:
        return []
    return [
        f'other processes used {other_load:.0%} of the cores during the measurement: repeat it on an idle '
        'machine'
    ]


class OtherLoad:
    """Context manager that measures the `share` of the cores (0..1, or None) that other processes use."""

    share: float | None = None

    def __enter__(self) -> OtherLoad:
        self.start = time.perf_counter(), time.process_time(), _busy_s()
        return self

    def __exit__(self, *_: object) -> None:
        start_s, start_cpu_s, start_busy_s = self.start
        busy_s = _busy_s()
        if busy_s is not None and start_busy_s is not None:
            others_s = (busy_s - start_busy_s) - (time.process_time() - start_cpu_s)
            available_s = (time.perf_counter() - start_s) * (os.cpu_count() or 1)
            self.share = round(min(max(others_s / available_s, 0.0), 1.0), 4)
