"""Makes Moji from nothing, stage by stage; every stage continues where it stopped. About five hours on two cores, far less on a GPU.

    pip install -e '.[recipe]'          # once; npm is needed too
    python recipes/moji/train.py        # all stages; or one: python recipes/moji/unet.py --steps 4000

Work files (drawings, checkpoints, logs) go to $MOJI_WORK, by default ~/.cache/efface/recipe-moji.
"""

import os
import subprocess
import sys

from common import HERE, WORK

STAGES = (
    "data.py",
    "autoencoder.py",
    "autoencoder.py --decoder",
    "text.py",
    "detectors.py",
    "unet.py",
    "assemble.py",
    "quality.py",
)
# Large tensors come and go at every step: keep their memory, in huge pages. Half as fast again on a virtual machine with glibc.
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "536870912",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        print(f"== {stage}", flush=True)
        subprocess.run([sys.executable, *stage.split()], cwd=HERE, env={**MEMORY, **os.environ}, check=True)


if __name__ == "__main__":
    main()
