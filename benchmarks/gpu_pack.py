"""The wheels that a GPU machine lacks for `benchmarks.gpu`, in a folder small enough to travel with the repository.

pip fetches them in the versions that are installed here, for that machine's Python; of bitsandbytes only the binary for
one version of CUDA stays. The machine is described in `THERE`: torch, accelerate, pyarrow and others are on it.
"""

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

LIMIT = 64 * 1024**2
"""Bytes that may travel, the repository included."""
THERE = {"python": "3.12", "cuda": "130"}
"""The machine's Python, and the version of CUDA that its torch is built with (2.11.0+cu130)."""
PACKAGES = (
    "transformers", "peft", "trl", "datasets", "huggingface_hub", "tokenizers", "bitsandbytes", "pydantic",
    "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions", "dill", "multiprocess", "httpx2",
    "httpcore2", "truststore",
)  # fmt: skip
ON_IT = (
    "absl-py", "accelerate", "anyio", "certifi", "click", "filelock", "fsspec", "grpcio", "h11", "hf-xet", "httpx",
    "idna", "jinja2", "markdown", "markupsafe", "numpy", "nvidia-ml-py", "packaging", "pandas", "pillow", "protobuf",
    "psutil", "pyarrow", "pyyaml", "regex", "requests", "safetensors", "scipy", "setuptools", "tensorboard",
    "tensorboard-data-server", "torch", "tqdm", "typer", "werkzeug", "xxhash",
)  # fmt: skip
"""What the machine's image has of what the studio's worker and these packages need. A requirement that is in neither
list is missed at the first import (`tests/test_gpu_script.py`)."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip


def pack(target: Path) -> int:
    """Fetches and strips the wheels, prints each size and the sum. The exit code is 1 where they are too large."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.whl"):
        old.unlink()
    names = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    only = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", THERE["python"]]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *only, *platforms]
    if subprocess.run([*command, "-d", str(target), *names]).returncode:
        return 1
    for wheel in target.glob("bitsandbytes-*.whl"):
        strip(wheel, THERE["cuda"])
    sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(target.glob("*.whl"))}
    repository = repository_bytes()
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MiB  {name}")
    total = sum(sizes.values()) + repository
    print(f"{repository / 2**20:8.2f} MiB  the repository\n{total / 2**20:8.2f} MiB  together, of {LIMIT / 2**20:.0f}")
    return 0 if total <= LIMIT else 1


def strip(wheel: Path, cuda: str) -> None:
    """Leaves of bitsandbytes' binaries those for the CPU and for one version of CUDA. Raises `FileNotFoundError` where
    the wheel has none for it."""
    stripped, library = wheel.with_suffix(".part"), f"libbitsandbytes_cuda{cuda}.so"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_DEFLATED) as copy:
        names = [Path(name).name for name in source.namelist()]
        if library not in names:
            raise FileNotFoundError(f"{wheel.name} has no {library}.")
        for item in source.infolist():
            name = Path(item.filename).name
            if name.startswith("libbitsandbytes_") and name not in (library, "libbitsandbytes_cpu.so"):
                continue
            data = source.read(item)
            if name == "RECORD":
                data = b"\n".join(line for line in data.splitlines() if is_kept(line.decode(), library)) + b"\n"
            copy.writestr(item, data, zipfile.ZIP_DEFLATED)
    stripped.replace(wheel)


def is_kept(line: str, library: str) -> bool:
    """Whether a line of the wheel's list of files is of one that stays."""
    name = Path(line.partition(",")[0]).name
    return not name.startswith("libbitsandbytes_") or name in (library, "libbitsandbytes_cpu.so")


def repository_bytes() -> int:
    """The files that git tracks, as they travel."""
    root = Path(__file__).resolve().parent.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True, text=True).stdout
    return sum((root / name).stat().st_size for name in listed.split("\0") if name and (root / name).is_file())
