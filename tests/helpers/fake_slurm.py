"""Programs of the names of SLURM's, that carry jobs out here: what submitit writes for a cluster is run as it is."""

from __future__ import annotations

import sys
from pathlib import Path

SBATCH = """
import os, re, subprocess
text = open(sys.argv[1]).read()
(folder / "sbatch.txt").write_text(text)
if "--partition=closed" in text:
    sys.exit("sbatch: error: invalid partition specified: closed")
array = re.search(r"^#SBATCH --array=0-(\\d+)", text, re.M)
job = str(os.getpid())
for index in range(int(array[1]) + 1) if array else [None]:
    own = {} if index is None else {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(index)}
    env = os.environ | {"SLURM_JOB_ID": job, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"} | own
    null = subprocess.DEVNULL
    subprocess.Popen(["bash", sys.argv[1]], env=env, stdin=null, stdout=null, stderr=null, start_new_session=True)
print("Submitted batch job", job)
"""
SRUN = """
import os
command = sys.argv[next(i for i, each in enumerate(sys.argv) if i and os.path.isfile(each)):]
os.execv(command[0], command)
"""
SACCT = 'print("JobID|State|NodeList")'
SCANCEL = '(folder / "cancelled.txt").open("a").write(sys.argv[1] + "\\n")'


def write_programs(folder: Path) -> Path:
    """sbatch, srun, sacct and scancel, to be put on the PATH; ``sbatch.txt`` is then the last script."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        path = folder / name
        path.write_text(
            f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\nfolder = Path({str(folder)!r})\n{text}\n"
        )
        path.chmod(0o755)
    return folder
