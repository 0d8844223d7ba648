"""What the numbers were measured on, and the environment that all contestants get."""

import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# An override of the kernels or the cache size that OpenBLAS finds by itself, set on some machines for old versions,
# makes a current NumPy slow; it is taken out for all.
REMOVED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_ALSO_UNSET = (
    "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "OMP_PROC_BIND",
    "PYTHONPATH", "XLA_FLAGS", "LD_PRELOAD", "GLIBC_TUNABLES",
)  # fmt: skip
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


def environment(blas_threads: int, tuned_malloc: bool = False) -> dict[str, str]:
    """The variables of a measured process."""
    kept = {name: value for name, value in os.environ.items() if name not in REMOVED + _ALSO_UNSET}
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    # One compiler thread: otherwise torch.compile keeps a pool of processes, which would outlive its parent.
    own = dict.fromkeys(threads, str(blas_threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return kept | own | (TUNED_MALLOC if tuned_malloc else {})


def cores() -> list[int]:
    """The cores that this process may use; the last ones first, since the system works most on the first."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0), reverse=True)
    return list(range(os.cpu_count() or 1))


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, system and versions; nothing that names the machine or its folders."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(cores()),
        "flags": [flag for flag in ("avx2", "avx512f") if flag in _cpuinfo("flags").split()],
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".strip(" ,"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def version(package: str) -> str:
    """The version of a package; "not installed" if there is none."""
    if package == "tinygrad_lenet":
        import tinygrad_lenet

        return tinygrad_lenet.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def public(text: str) -> str:
    """A message without the folders of this machine."""
    places = {str(ROOT): "", sys.prefix: "", str(Path.home()): "~", os.environ.get("TMPDIR", "/tmp"): ""}
    for place, name in places.items():
        if len(place) > 1:
            text = text.replace(place, name)
    return text
