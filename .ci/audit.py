"""Check the locked packages for known vulnerabilities, by pip-audit.

The package index must provide vulnerabilities; not every index does.
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
        lines = run.stderr.strip().splitlines() or ["no reason given"]
        print(f"pip-audit failed: {lines[-1]}")
        return 1
    found = [(p, entry) for p in packages for entry in p.get("vulns", ())]
    for package, entry in found:
        fixed = ", ".join(entry["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {entry['id']}: {fixed}")
    unknown = sum("skip_reason" in package for package in packages)
    if unknown:
        print(
            f"not audited: {unknown} of {len(packages)} packages;"
            " the package index provides no data for them"
        )
    elif not found:
        print(f"no known vulnerability in {len(packages)} packages")
    return 1 if found or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
