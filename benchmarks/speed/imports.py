"""What is imported before the program does anything, and before the bundle's first batch."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter

from . import bundle
from .harness import Options, Result
from .scans import jpeg_scan

MONAI_ALONE = "import monai.bundle (MONAI alone)"
# what a command needs and shows that it does
USED = {"fairlung --help": {"rich"}, "inference.yaml, one tiny scan": {"PIL"}}
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")
# loaded only where they are used; what a command has no use for must not be here
HEAVY = (
    "mlflow", "matplotlib", "sklearn", "statsmodels", "SimpleITK", "highdicom", "fairlearn", "pandas", "scipy", "itk",
    "ray", "onnx", "onnxruntime", "openvino", "nibabel", "pydicom",
    "sqlalchemy", "torchvision", "monai", "torch",
    "ignite", "rich",
)  # fmt: skip


def import_times(arguments: list[str], limit: float = 300) -> tuple[float, Counter[str]]:
    """Seconds of a command, and seconds that the modules of each package took by themselves."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=limit
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{arguments} failed:\n" + "\n".join(done.stderr.splitlines()[-20:]))
    packages: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        if (found := LINE.match(line)) is not None:
            name = found[4].split(".")
            package = ".".join(name[:2]) if name[0] == "fairlung" else name[0]
            packages[package] += int(found[1])
    return seconds, Counter({name: micro / 1e6 for name, micro in packages.items()})


def measure(options: Options) -> Result:
    result = Result("imports")
    scan = jpeg_scan(options.scratch, 12, 64)
    checkpoint = bundle.checkpoint(
        options.scratch / "tiny.pt", bundle.network(), num_slices=4, image_size=32, crop_size=32
    )
    with tempfile.TemporaryDirectory() as out:
        run = ["-m", "monai.bundle", "run", "--bundle_root", str(bundle.BUNDLE)]
        commands = {
            MONAI_ALONE: ["-c", "import monai.bundle"],
            "fairlung --help": ["-m", "fairlung.pipeline", "--help"],
            "import fairlung.transforms": ["-c", "import fairlung.transforms"],
            "inference.yaml, one tiny scan": [
                *run, "--config_file", str(bundle.CONFIGS / "inference.yaml"), "--scans", str(scan), "--output_dir",
                out,
                "--checkpoint", str(checkpoint), "--num_workers", "0",
            ],
        }  # fmt: skip
        if options.small:
            commands = {name: commands[name] for name in (MONAI_ALONE, "import fairlung.transforms")}
        theirs: set[str] = set()
        for name, arguments in commands.items():
            import_times(arguments)  # bytecode, file cache
            seconds, packages = import_times(arguments)
            top = ", ".join(f"{package} {value:.2f}" for package, value in packages.most_common(8))
            if name == MONAI_ALONE:
                theirs = set(packages)
            loaded = [package for package in HEAVY if package in packages]
            own = [package for package in loaded if package not in theirs]
            result.rows.append(
                {"command": name, "seconds": seconds, "in imports": sum(packages.values()), "most of it": top,
                 "heavy ones": ", ".join(loaded), "of these not MONAI's": ", ".join(own)}
            )  # fmt: skip
            result.extra[name] = dict(packages.most_common(40))
            if name != MONAI_ALONE:
                unused = [package for package in own if package not in USED.get(name, ())]
                said = f"not MONAI's and not used: {', '.join(unused) or 'none'}"
                result.target(f"imports, {name}", "nothing that is not used", said, not unused)
    result.notes.append(
        "Seconds with `-X importtime`, which itself costs some; a package's modules by themselves. When MONAI is "
        "imported, it imports every optional package that is installed; no command that uses MONAI can be without."
    )
    return result
