"""Whether a package that the studio runs on has a known hole: `python -m tests.audit`, or `make audit`.

pip-audit looks every package of the lock file up in the package index's list of vulnerabilities. Where that list can't
be asked, this says so and fails: a package that nobody looked up is not one without a hole.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements-cuda.lock"  # what the other one holds is in it
CLEAN, HOLES, NOT_AUDITED = 0, 1, 2


def judged(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code and what to say of pip-audit's report."""
    packages = report["dependencies"]
    holes = [(one, hole) for one in packages for hole in one.get("vulns", ())]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    said = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one, hole in holes
    ]
    if skipped:
        named = f"{', '.join(skipped[:5])}{' and others' if len(skipped) > 5 else ''}"
        said.append(f"NOT AUDITED: {len(skipped)} of {len(packages)} packages could not be looked up ({named}).")
    if holes:
        return HOLES, said
    if skipped or not packages:
        return NOT_AUDITED, said or ["NOT AUDITED: the lock file names no package."]
    return CLEAN, [f"No known hole in {len(packages)} packages."]


def main() -> int:
    given = ["-r", str(LOCK), "--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *given], capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"NOT AUDITED: the list of vulnerabilities could not be asked.\n{last[:300]}")
        return NOT_AUDITED
    code, said = judged(report)
    print("\n".join(said))
    return code


if __name__ == "__main__":
    sys.exit(main())
