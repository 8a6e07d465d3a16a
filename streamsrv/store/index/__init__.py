"""The index: which SOP instances there are, where their bytes are, and the answers of searches."""

from streamsrv.store.index.answers import (
    expand,
    fill,
    fill_page,
    instance_attributes,
    reader_of,
)
from streamsrv.store.index.audit import Audit
from streamsrv.store.index.batch import Batch, Gone, Prepared, Removal, prepare, runs
from streamsrv.store.index.damage import DamagedRecord
from streamsrv.store.index.environment import birth
from streamsrv.store.index.few_studies import USUAL_MEMORY
from streamsrv.store.index.index import Index
from streamsrv.store.index.metadata_blobs import SHORT, attributes_in, compressed
from streamsrv.store.index.ordered import value_reader
from streamsrv.store.index.rows import (
    PLACE,
    LevelRow,
    PackedRow,
    instance_answer,
    json_object,
    metadata_in,
    number_key,
    places_in,
    record_id_of,
    record_ids_of,
    segment_in,
    segment_key,
    serial_of,
    split_triple,
    syntax_in,
    triple,
    unpacked,
    variant_key,
    variant_of,
    with_sum,
    without_sum,
)
from streamsrv.store.index.walk import LEVELS, Hit
