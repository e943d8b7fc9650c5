"""A stand-in for an installed llama.cpp: programs that take its arguments, speak as it does and write small files."""

from pathlib import Path

CONVERTER = """
import os, sys, time
model, out, kind = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1], sys.argv[sys.argv.index("--outtype") + 1]
print("INFO:hf-to-gguf:Loading model:", os.path.basename(model))
print("secrets seen:", sorted(name for name in os.environ if "TOKEN" in name))
if not os.path.isfile(os.path.join(model, "config.json")):
    print("no config.json")
    sys.exit(3)
for share in (0, 50, 100):
    sys.stderr.write(f"\\rWriting: {share:3d}%|#####     | 1.0M/2.0M [00:01<00:01, 1.0Mbyte/s]")
    sys.stderr.flush()
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
with open(out, "wb") as file:
    file.write(b"GGUF" + (3).to_bytes(4, "little") + (7).to_bytes(8, "little") + (2).to_bytes(8, "little"))
    file.write(kind.encode())
"""
QUANTIZER = """#!/bin/sh
echo "[   1/   7]                        token_embd.weight - [  192,   750,     1,     1], type =   bf16, size = 0.3 MB"
echo "[   7/   7]                         blk.0.attn_q.weight - [  192,   192,     1,     1], type =   bf16"
cat "$1" > "$2"
printf "%s" "$3" >> "$2"
"""


def write_llama_cpp(folder: Path, *, quantizer: bool = True) -> Path:
    """A llama.cpp folder as its own build leaves it."""
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER, encoding="utf-8")
    if quantizer:
        program = folder / "build" / "bin" / "llama-quantize"
        program.write_text(QUANTIZER, encoding="utf-8")
        program.chmod(0o755)
    return folder
