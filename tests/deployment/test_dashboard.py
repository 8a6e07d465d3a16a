"""conf/grafana-dashboard.json fits the schema that Grafana publishes. TypeScript checks the file as a value
of its types, and the options of each panel. Grafana itself is not in Debian, PyPI or npm.
"""

import copy
import json
import subprocess

import pytest
from live_server import ROOT

PACKAGES = ("@grafana/schema@13.2.3", "typescript@7.0.2")
DASHBOARD = json.loads((ROOT / "conf" / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
MODULES = {"stat": "StatPanelCfg", "timeseries": "TimeSeriesPanelCfg"}
# Enumerations as their values. Panels leave out options that have a default.
TYPES = """
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? {[K in keyof T]: Plain<T[K]>} : T;
type Some<T> = {[K in keyof T]?: Some<T[K]>};
"""


def source(dashboard):
    yield 'import type {Dashboard, GraphFieldConfig} from "@grafana/schema";'
    for kind, name in MODULES.items():
        place = f"@grafana/schema/dist/esm/raw/composable/{kind}/panelcfg/x/{name}_types.gen"
        yield f'import type {{Options as {kind}}} from "{place}";'
    yield TYPES
    yield f"export const dashboard: Plain<Dashboard> = {json.dumps(dashboard)};"
    for number, panel in enumerate(dashboard["panels"]):
        if panel["type"] == "row":
            continue
        custom = json.dumps(panel["fieldConfig"]["defaults"].get("custom", {}))
        yield f"const _{number}: Some<Plain<{panel['type']}>> = {json.dumps(panel['options'])};"
        yield f"const _{number}_custom: Some<Plain<GraphFieldConfig>> = {custom};"


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Returns the complaints about a dashboard."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "package.json").write_text('{"private": true}')
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    subprocess.run(install, cwd=folder, check=True, timeout=300, stdout=subprocess.DEVNULL)

    def checked(dashboard):
        (folder / "dashboard.ts").write_text("\n".join(source(dashboard)))
        command = ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck"]
        command += ["--module", "esnext", "--moduleResolution", "bundler", "dashboard.ts"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout

    return checked


def test_the_dashboard_fits(check):
    assert {panel["type"] for panel in PANELS} == set(MODULES)
    assert check(DASHBOARD) == ""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schemaVersion",), "39"),
        (("templating", "list", 1, "refresh"), 7),
        (("panels", 1, "gridPos", "width"), 3),
        (("panels", 1, "options", "colorMode"), "values"),
        (("panels", 1, "fieldConfig", "defaults", "custom"), {"drawStyle": "lines"}),
    ],
)
def test_a_mistake_is_found(check, path, value):
    changed = copy.deepcopy(DASHBOARD)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert "error TS" in check(changed)
