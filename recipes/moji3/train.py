"""Makes Moji-3 from Moji's drawings, stage by stage; every stage continues where it stopped. About two hours on one core.

    pip install -e '.[recipe]'           # once; npm is needed too
    python recipes/moji3/train.py        # all stages; or one: PYTHONPATH=recipes/moji python recipes/moji3/transformer.py --steps 4000

Work files (drawings, checkpoints, logs) go to $MOJI_WORK, by default ~/.cache/efface/recipe-moji.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MOJI = HERE.with_name("moji")
STAGES = (MOJI / "data.py", HERE / "transformer.py", HERE / "assemble.py", HERE / "quality.py")
# as in Moji's recipe: large tensors come and go at every step
MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "536870912",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip


def main() -> None:
    work = Path(os.environ.get("MOJI_WORK", Path.home() / ".cache" / "efface" / "recipe-moji"))
    work.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(MOJI), *filter(None, [os.environ.get("PYTHONPATH")])])
    for stage in STAGES:
        print(f"== {stage.name}", flush=True)
        subprocess.run([sys.executable, str(stage)], env={**MEMORY, **os.environ, "PYTHONPATH": path}, check=True)


if __name__ == "__main__":
    main()
