"""Compares the packages that the wheel installs with the advisories that the package index knows.

python tests/audit_packages.py SITE-PACKAGES

pip-audit asks the index for each installed version. An advisory about one of them ends the run with 1, unless
EXCEPTIONS names it. An index without advisories (a mirror) is no error, because a release must not depend on
it: the output says how many packages were compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Advisory -> why it does not concern this server, and until when that was checked.
EXCEPTIONS: dict[str, str] = {}
OURS = "streamsrv"


def report(found: dict[str, Any], exceptions: dict[str, str] = EXCEPTIONS) -> tuple[int, list[str]]:
    """Exit status and lines. `found` is the JSON of pip-audit."""
    packages = [each for each in found["dependencies"] if each["name"] != OURS]
    compared = [each for each in packages if "skip_reason" not in each]
    lines, wrong = [], 0
    for each in compared:
        for advisory in each["vulns"]:
            names = {advisory["id"], *advisory.get("aliases", ())}
            excused = sorted(names & exceptions.keys())
            wrong += not excused
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no version"
            reason = f"accepted: {exceptions[excused[0]]}" if excused else f"fixed in {fixed}"
            lines.append(f"{each['name']} {each['version']}: {advisory['id']} ({reason})")
    known = {name for each in compared for one in each["vulns"] for name in (one["id"], *one["aliases"])}
    if len(compared) == len(packages):
        lines += [f"{name} is accepted, and concerns no package" for name in exceptions.keys() - known]
    lines.append(f"{len(compared)} of {len(packages)} packages were compared with advisories")
    if not compared:
        lines.append(
            "the package index has no advisories: compare the list of components with a source of them"
        )
    return (1 if wrong else 0), lines


def main(words: list[str]) -> int:
    (folder,) = words
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--path",
        folder,
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout:
        print(done.stderr, file=sys.stderr)
        return 2
    status, lines = report(json.loads(done.stdout))
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
