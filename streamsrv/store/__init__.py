"""Segments and the index: the only room that touches files and LMDB. Blocking; called from threads.

Other rooms import these names and nothing else of it. The verbs and the scrub process also import the modules
of maintenance/, which a worker does not load.
"""

from streamsrv.store.documents import (
    ChangedTexts,
    DocumentChange,
    DocumentDamaged,
    Documents,
    FolderDocuments,
    FolderLease,
    Lease,
    LeaseLost,
    NamedText,
    WatchedDocuments,
    make_private,
)
from streamsrv.store.fileops import Buffer, write_all
from streamsrv.store.index import (
    LEVELS,
    PLACE,
    SHORT,
    DamagedRecord,
    Hit,
    Index,
    LevelRow,
    PackedRow,
    Prepared,
    attributes_in,
    compressed,
    expand,
    fill,
    fill_page,
    instance_answer,
    instance_attributes,
    json_object,
    metadata_in,
    places_in,
    prepare,
    reader_of,
    serial_of,
    split_triple,
    syntax_in,
    unpacked,
    value_reader,
)
from streamsrv.store.ordered_map import same_server
from streamsrv.store.rows import (
    METADATA_CHUNK,
    SHORT_TEXT,
    Change,
    ChangeKind,
    InstanceKey,
    InstanceRow,
    Location,
    NewInstance,
    OnDuplicate,
    Outcome,
)
from streamsrv.store.segments.leases import Fetcher, FileRange, SegmentLease
from streamsrv.store.segments.records import Record
from streamsrv.store.segments.verifying import MISSING_SEGMENT, damaged_record, refusal
from streamsrv.store.store import Store, StoreOptions, migrate_index, open_documents
from streamsrv.store.transaction import Transaction
