"""Which store the servers of tests have. `pytest --store cluster` runs tests over HTTP, which were written
for the store in a folder, against nodes over PostgreSQL and a bucket.

Each test module that starts a server is in ON_BOTH, or in EMBEDDED with the reason. No other module can start
a server. A single test of a module in ON_BOTH is left out by `@pytest.mark.embedded("reason")`.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

from streamsrv import config

TESTS = Path(__file__).parent
GIVEN = "TESTS_OF_A_CLUSTER"  # the database and the endpoint, as JSON; also for processes of tests

_LISTED = """
clients/test_browser.py clients/test_curl.py clients/test_dcmtk.py clients/test_dicomtrolley.py
clients/test_docs_blocks.py clients/test_javascript_client.py clients/test_openapi_requests.py
clients/test_orthanc.py clients/test_python_clients.py clients/test_viewers.py clients/test_wire.py
dicom/test_charsets.py dicom/test_private_sequences.py
events/test_events_http.py events/test_forwarding.py events/test_hooks.py events/test_told_once.py
retrieve/test_archives.py retrieve/test_pixels_http.py retrieve/test_prefetch_http.py
retrieve/test_wado_uri.py
test_access.py test_access_matrix.py test_audit.py test_client.py test_client_files.py test_corpus.py
test_descriptors.py
test_dimse.py test_dimse_find.py test_dimse_forwarding.py test_dimse_get.py
test_dimse_move.py test_dimse_mutants.py test_dimse_tls.py test_failed_logins.py
test_hostile_bodies.py test_hostile_clients.py test_hostile_heads.py test_hostile_instances.py
test_hostile_metadata.py test_hostile_requests.py test_hostile_slow.py test_hostile_values.py
test_issuer_sign_in.py test_logs.py test_many_items.py test_metadata_http.py test_metrics.py test_oidc.py
test_operations.py test_peers.py test_pixel_fairness.py test_preconditions.py test_rules_model.py
test_sessions.py test_supervisor.py test_tls.py test_tutorial.py
"""
ON_BOTH = frozenset(_LISTED.split())
EMBEDDED = {
    "retrieve/test_damage_http.py": "changes bytes of segment files",
    "store/test_changes_log.py": "loses the index, and makes it again from the segments",
    "test_cli.py": "copies and spoils the folder of a store",
    "test_clock_steps.py": "makes the index again; leases of nodes are times of the database",
    "test_database_index.py": "names its own database",
    "test_dimse_commit.py": "changes bytes of segment files",
    "test_disk_full.py": "fills the disk of the segments",
    "test_failing_disk.py": "lets calls on the segments fail",
    "test_failing_verbs.py": "lets calls on the segments fail",
    "test_guard.py": "cuts the file of the index",
    "test_kill.py": "makes the index again; deployment/test_node_kills.py kills nodes",
    "test_power_cut.py": "cuts the power of the disk of the segments",
    "test_privileges.py": "compares the modes of the files of a store, and makes the index again",
    "test_read_only_mount.py": "mounts the folder of a store without the right to write",
    "test_removed_files.py": "moves the files of a store away",
    "test_scrubbing.py": "changes bytes of segment files",
    "test_tidied.py": "moves the files of a store away",
    "test_upgrades.py": "opens a folder of an earlier version",
    "test_wrong_files.py": "exchanges the files of a store",
    "tools/test_backup_verbs.py": "copies the segments",
    "tools/test_deidentified.py": "exports from the folder of a store",
    "tools/test_export.py": "exports from the folder of a store",
    "tools/test_import.py": "imports into the folder of a store",
    "tools/test_pull.py": "pulls into the folder of a store",
    "tools/test_move_verb.py": "names the stores between which it moves",
}


def path_of(module):
    """As ON_BOTH has it."""
    return str(module.relative_to(TESTS))


def module_of_test():
    """The path of the module whose test runs, in the folder of the tests; "" outside of them."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    return test.removeprefix("tests/")


def require_listed():
    module = module_of_test()
    elsewhere = not module or module.startswith(("deployment/", "soak/"))
    assert elsewhere or module in ON_BOTH or module in EMBEDDED, f"{module}: add it to tests/store_kinds.py"


def give(database, object_store):
    """From now on servers are nodes."""
    os.environ[GIVEN] = json.dumps([str(database.folder), object_store.endpoint])


def variables_for(words):
    """The environment of a verb with these words of the command line."""
    words = [str(word) for word in words]
    if "--data" not in words or "--index" in words:
        return {}
    return variables_of(words[words.index("--data") + 1])


def is_cluster():
    return GIVEN in os.environ


def schema_of(data):
    return "of_" + hashlib.blake2b(str(Path(data).resolve()).encode(), digest_size=8).hexdigest()


def settings_for(data):
    """The settings of a server with this folder, as far as they name its store."""
    return config.load(environment=variables_of(data) | {"STREAMSRV_DATA": str(data)})


def naming(data):
    """A context in whose environment the store of this folder is named."""
    return patch.dict(os.environ, variables_of(data))


def lose_index(data):
    """Of a server that has ended."""
    if not is_cluster():
        shutil.rmtree(data / "index")
        return
    from database_server import said

    folder, _ = json.loads(os.environ[GIVEN])
    said(folder, f"DROP SCHEMA {schema_of(data)} CASCADE")


def variables_of(data):
    """The environment of a server, or of a verb, for its data folder: a schema and a prefix of its own."""
    if not is_cluster():
        return {}
    # In a process of a test that is no cluster these are not needed.
    from database_server import url_of
    from seaweed import BUCKET, variables

    (folder, endpoint), name = json.loads(os.environ[GIVEN]), schema_of(data)
    place = {"STREAMSRV_INDEX": url_of(folder, name), "STREAMSRV_SEGMENTS": f"s3://{BUCKET}/{name}"}
    return place | variables(endpoint)
