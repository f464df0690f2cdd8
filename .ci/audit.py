"""Look the locked packages up among the known weaknesses, by pip-audit.

It asks the package index, and not every index tells: one that does not is no proof.
"""

import json
import subprocess
import sys

LOCK = "requirements-dev.lock"


def main() -> int:
    options = ["--require-hashes", "--disable-pip", "--format=json"]
    run = subprocess.run(
        [sys.executable, "-m", "pip_audit", f"--requirement={LOCK}", *options],
        capture_output=True,
        text=True,
    )
    try:
        packages = json.loads(run.stdout)["dependencies"]
    except ValueError:
        lines = run.stderr.strip().splitlines() or ["it gave no reason"]
        print(f"pip-audit failed: {lines[-1]}")
        return 1
    weak = [(p, weakness) for p in packages for weakness in p.get("vulns", ())]
    for package, weakness in weak:
        remedy = ", ".join(weakness["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {weakness['id']}: {remedy}")
    unknown = sum("skip_reason" in package for package in packages)
    if unknown:
        print(
            f"not audited: {unknown} of {len(packages)} packages;"
            " the package index does not tell what is known of them"
        )
    elif not weak:
        print(f"no known weakness in {len(packages)} packages")
    return 1 if weak or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
