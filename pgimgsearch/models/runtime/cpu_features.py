"""Which precisions a CPU computes faster than fp32."""

from functools import cache
from pathlib import Path


@cache
def faster_dtypes(*, matrix_products: bool, file: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Of int8 and bf16, what this processor gains by; int8 only for networks of ``matrix_products``.

    int8 needs dot products of bytes. bf16 needs AMX, or AMD's AVX-512: Intel's without AMX is slower than fp32.
    """
    try:
        text = file.read_text()
    except OSError:  # no Linux
        return ()
    lines = [line for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    flags = set(lines[0].split()) if lines else set()
    int8 = matrix_products and bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"})
    bf16 = "amx_bf16" in flags or ("AuthenticAMD" in text and "avx512_bf16" in flags)
    return tuple(name for name, gains in {"int8": int8, "bf16": bf16}.items() if gains)
