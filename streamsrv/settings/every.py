"""Every setting of the server, in one frozen dataclass.

A setting is one row: `name: type = table(default, unit, reason)`. A name occurs once, so that the environment
and the flags need no table. config.py reads the rows from files, the environment and flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from streamsrv.settings.access import TABLES_OF_ACCESS
from streamsrv.settings.dimse import TABLES_OF_DIMSE, DimseSettings
from streamsrv.settings.rows import (
    never_a_host,
    never_a_network,
    never_an_origin,
    not_a_base,
    not_a_bucket,
    not_a_database,
    not_a_mode,
    setting,
)

# Tables of the TOML file, with their subject.
TABLES_OF_SERVING = {
    "http": "Addresses, proxies, browsers, processes and logs",
    "store": "Folder of the store, duplicates, disk space and the scrub",
    "cluster": "An index in a database, and segments in a bucket",
    "pixels": "Processes that decode, encode and render frames",
    "search": "Number of results and cost of one search",
    "limits": "Limits of connections, requests and datasets",
}
TABLES = TABLES_OF_SERVING | TABLES_OF_DIMSE | TABLES_OF_ACCESS


_http, _store, _cluster, _pixels, _search, _limits = (partial(setting, table) for table in TABLES_OF_SERVING)


@dataclass(frozen=True, slots=True)
class Settings(DimseSettings):
    """All settings of a server. In a limit, 0 means no limit if its reason says so."""

    host: str = _http(
        "127.0.0.1",
        "address",
        "The address to listen on. By default only this machine has access.",
    )
    port: int = _http(8943, "TCP port", "The port to listen on. 0: any free one.", most=65535)
    unix_socket: str = _http(
        "",
        "path",
        "A Unix socket for a proxy on this machine, beside the port. It speaks HTTP. Empty: none.",
    )
    unix_socket_mode: str = _http(
        "660",
        "octal mode",
        "The permissions of `unix_socket`. A client needs the right to write.",
        wrong=not_a_mode,
    )
    health_port: int = _http(
        0,
        "TCP port",
        "A second port on 127.0.0.1 for probes. It answers /health/live and /health/ready only, also when "
        "clients use all connections. 0: no second port.",
        most=65535,
    )
    metrics_port: int = _http(
        0,
        "TCP port",
        "A port for Prometheus. It answers /metrics only, with counters and the state of the store, and "
        "without data of patients. 0: no metrics.",
        most=65535,
    )
    metrics_host: str = _http(
        "127.0.0.1",
        "address",
        "The address of `metrics_port`. There is no login: its clients need none.",
    )
    allow_remote_without_authentication: bool = _http(
        False,
        "yes or no",
        "Allows a `host` that other machines reach without `auth`. They can then read and delete every "
        "study.",
    )
    allowed_hosts: tuple[str, ...] = _http(
        (),
        "host names",
        "Names other than localhost under which clients reach this server. Another Host header is refused, "
        "because of DNS rebinding: a hostile page can let its own name point to this server.",
        wrong=never_a_host,
    )
    public_url: str = _http(
        "",
        "URL without version",
        "The start of absolute URLs in answers, for a server behind a proxy. Empty: from the request.",
        wrong=not_a_base,
    )
    trusted_proxies: tuple[str, ...] = _http(
        (),
        "addresses or networks",
        "Proxies whose forwarding headers are used; `unix` stands for `unix_socket`. Other clients may "
        "invent such headers.",
        wrong=never_a_network,
    )
    forwarded_headers: str = _http(
        "x-forwarded",
        "",
        "The headers that the trusted proxies write: X-Forwarded-For, -Host and -Proto, or Forwarded "
        "(RFC 7239). The others are ignored.",
        choices=("x-forwarded", "forwarded"),
    )
    cors_origins: tuple[str, ...] = _http(
        (),
        "origins, or *",
        "Origins of web viewers (https://viewer.example) whose pages may read answers and embed pictures.",
        wrong=never_an_origin,
    )
    cors_max_age: int = _http(
        7200, "seconds", "The time for which a browser keeps a preflight answer. Chromium keeps it two hours."
    )
    cache_max_age: int = _http(
        0,
        "seconds",
        "The time for which a browser may use a cached answer without a request. 0: it asks each time.",
    )
    viewer_progressive: bool = _http(
        False,
        "yes or no",
        "The viewer at /viewer/ requests images of a stack as HTJ2K, and shows a picture from the first 32 "
        "kB. For slow networks: the server transcodes frames that are stored otherwise.",
    )
    browser: bool = _http(
        True,
        "yes or no",
        "Serves the page at / for people: study list, upload, pictures, attributes. It has no more rights "
        "than any client.",
    )
    workers: int = _http(
        0, "processes", "Server processes. They share the port and the store. 0: one for each core."
    )
    hang_timeout: float = _http(
        60.0,
        "seconds",
        "A worker whose event loop stops for this time is replaced; the log shows its stacks. 0: never.",
    )
    drain_timeout: float = _http(
        30.0, "seconds", "After SIGTERM, requests in progress have this time to finish."
    )
    log_format: str = _http(
        "text",
        "",
        "The format of the logs on standard error: lines of text, or one JSON object in each line.",
        choices=("text", "json"),
    )
    log_level: str = _http(
        "info",
        "",
        "The least severe messages that are logged. At warning there is no line for each request.",
        choices=("debug", "info", "warning", "error"),
    )
    fast_path: bool = _http(
        True,
        "yes or no",
        "Answers a known header block, and a frame that was answered before, without parsing the request.",
        advanced=True,
    )

    data: str = _store(
        "data",
        "folder",
        "The folder of the store. It must be on a local file system, because of its locks and syncs.",
    )
    read_only: bool = _store(False, "yes or no", "Answers stores and deletes with 403.")
    on_duplicate: str = _store(
        "refuse",
        "",
        "The action for a SOP instance that is stored already. Refusing loses no data.",
        choices=("refuse", "accept-identical", "replace"),
    )
    min_free: int = _store(
        0,
        "bytes",
        "With less free space, stores are answered with 507. 0: the smaller of 1 GiB and 2 % of the disk.",
    )
    keep_changes: int = _store(
        1_000_000,
        "changes",
        "Entries in the log of stored, replaced and deleted instances, of 200 bytes each. 0: no limit.",
    )
    study_quiet: float = _store(
        30.0,
        "seconds",
        "A study is told as complete when nothing was added to it for so long. 0: it never is.",
    )
    index: str = _cluster(
        "",
        "URL",
        "A PostgreSQL database for the index: postgresql://user@host/name?sslmode=verify-full. "
        "libpq reads PGPASSWORD and ~/.pgpass. Empty: the index is in the folder of the store.",
        wrong=not_a_database,
    )
    segments: str = _cluster(
        "",
        "URL",
        "A bucket for the segments: s3://bucket/prefix. Endpoint, region and credentials are those of the "
        "AWS tools. Needs `index`; `data` is then the folder of this node. Empty: they are in that folder.",
        wrong=not_a_bucket,
    )
    cache: str = _cluster("", "folder", "The cache of segments in a bucket. Empty: `cache` in `data`.")
    cache_size: int = _cluster(
        10 << 30, "bytes", "Bytes of segments that are kept in the cache of this node.", least=64 << 20
    )
    removal_grace: float = _cluster(
        3600.0,
        "seconds",
        "Bytes stay in the bucket for so long after their last instance was deleted. Longer than any answer.",
    )
    upload_lease: float = _cluster(
        600.0,
        "seconds",
        "An upload is given up when its node has been silent for so long.",
        least=1,
        advanced=True,
    )
    hooks: bool = _store(
        False,
        "yes or no",
        "Sends changes to the hooks of `streamsrv hook`, by a process of its own.",
    )
    bulk_threshold: int = _store(
        1024, "bytes", "In metadata, a longer binary value is replaced by a BulkDataURI."
    )
    scrub_days: float = _store(
        30.0,
        "days",
        "The time in which the scrub compares every stored byte with its digest once. 0: no scrub.",
    )
    scrub_rate: int = _store(
        20 << 20,
        "bytes a second",
        "The highest read rate of the scrub. The default reads 50 TB in 30 days. 0: no limit.",
    )
    segment_size: int = _store(
        1 << 30,
        "bytes",
        "A segment of this size takes no more requests. Larger ones take longer to compact.",
        least=1 << 16,
        advanced=True,
    )
    keep_in_memory: int = _store(
        128 << 20,
        "bytes",
        "The part of a long value that stays in the page cache. The rest is written past it (Linux 6.14 or "
        "later), so that a large slide does not evict other studies. 0: all of it stays.",
        advanced=True,
    )

    pixel_workers: int = _pixels(
        0,
        "processes",
        "Pixel processes for all workers, at most. As many more work on over 4 MB of pixels, so that small "
        "pictures do not wait. 0: one for each core.",
    )
    pixel_queue: int = _pixels(
        32,
        "tasks a client and worker",
        "Batches of frames that may wait for a pixel process; others are answered with 429 and Retry-After.",
    )
    pixel_deadline: float = _pixels(
        30.0,
        "seconds",
        "The longest time for one batch of frames. Up to 4 MB of pixels have 3 to 5 seconds of CPU time.",
    )
    pixel_memory: int = _pixels(
        2 << 30, "bytes", "Memory that a pixel process may allocate in addition to its libraries."
    )
    pixel_cache: int = _pixels(
        64 << 20, "bytes", "Size of the cache of transcoded frames and rendered pictures in each worker."
    )
    pixel_rate: int = _pixels(
        0,
        "bytes a second, client and worker",
        "Decoded bytes of frames that are transcoded or rendered for one client, on average of ten seconds. "
        "More is answered with 429 and Retry-After. A client is a principal, else an address. 0: no limit.",
    )
    max_rendered_pixels: int = _pixels(
        16 << 20,
        "pixels",
        "The largest viewport, unless the frame is larger; answered with 400. All frames of an animation "
        "together have at most four times as many.",
        least=1,
    )
    annotation_fonts: tuple[str, ...] = _pixels(
        (),
        "files",
        "TrueType or OpenType fonts for annotations, the preferred first; #2 behind the path takes the third "
        "face of a collection. Empty: free fonts in the folders of the system.",
    )
    prefetch: int = _pixels(
        2,
        "frames",
        "Number of frames to prefetch for a client that reads frames in sequence, using idle pixel processes "
        "only. 0: none.",
        advanced=True,
    )

    search_limit: int = _search(200, "results", "The limit of a search that has no limit parameter.")
    max_search_limit: int = _search(
        5000, "results", "A larger limit parameter is lowered to this, with a Warning header."
    )
    search_rows: int = _search(
        1_000_000,
        "rows",
        "Index rows that one search may read, in some seconds of one core; answered with 413.",
    )
    search_rate: int = _search(
        0,
        "rows a second, client and worker",
        "Index rows that long searches of one client read, on average of ten seconds. More is answered "
        "with 429 and Retry-After. A client is a principal, else an address. 0: no limit.",
    )
    search_metadata: int = _search(
        256 << 20,
        "bytes",
        "DICOM JSON that one search may read for attributes without an index; answered with 413.",
    )

    max_connections: int = _limits(
        4000,
        "connections a worker",
        "Above this number a new connection replaces an idle one, or waits in the kernel's queue. Each takes "
        "20 kB and a descriptor, with TLS 40 kB.",
        least=1,
    )
    max_connections_per_client: int = _limits(
        1000,
        "connections a worker",
        "The same limit for one principal, and for other connections of an address (IPv6: a /64 network). It "
        "does not apply to a trusted proxy. 0: no limit.",
    )
    client_threads: int = _limits(
        32,
        "requests a worker",
        "Searches, deletions and other long requests of one client that are computed at once. 16 times as "
        "many wait; others are answered with 429 and Retry-After. A client is a principal, else an address.",
        least=1,
    )
    max_uploads: int = _limits(
        32,
        "uploads a worker",
        "Concurrent uploads, three quarters of them for one client, which gets 429 for others. Else they get "
        "503, both with Retry-After. Each holds 4 MiB of its body in memory, and a segment.",
        least=1,
    )
    slow_upload_rate: int = _limits(
        16384,
        "bytes a second",
        "While three quarters of max_uploads are in use, slower uploads end with 408, the slowest first. "
        "0: none.",
    )
    idle_timeout: float = _limits(
        60.0, "seconds", "From the end of an answer to the end of the next request's headers.", least=0.1
    )
    head_timeout: float = _limits(
        20.0,
        "seconds",
        "From the first byte of a request's headers, or from connecting, to their end.",
        least=0.1,
    )
    stall_timeout: float = _limits(
        30.0,
        "seconds",
        "The period in which a body must move min_rate times this many bytes, in either direction.",
        least=0.1,
    )
    min_rate: int = _limits(1024, "bytes a second", "The connection of a slower body is closed.")
    max_url: int = _limits(
        16384, "bytes", "A longer URL is answered with 414. A list of 250 UIDs has 16 kB.", least=256
    )
    max_head: int = _limits(
        16384, "bytes", "All headers of a request; answered with 431, also over 100 lines.", least=1024
    )
    max_body: int = _limits(
        0, "bytes", "A longer body is answered with 413. 0: no limit, because bodies are streamed."
    )
    max_inflated_body: int = _limits(
        64 << 30, "bytes", "The unpacked size of a gzip body; answered with 413. 0: no limit."
    )
    max_inflation: int = _limits(
        100,
        "times",
        "The ratio of the unpacked to the packed size of a gzip body of over 256 MB; answered with 413. "
        "Images reach 20, gzip reaches 1000. 0: no limit.",
    )
    max_instance: int = _limits(0, "bytes", "The size of one SOP instance; answered with 413. 0: no limit.")
    max_parts: int = _limits(
        100_000, "parts", "Parts of one multipart body. Each takes memory until the answer is sent.", least=1
    )
    max_part_head: int = _limits(
        16384, "bytes", "The headers of one part. They usually have some hundred bytes.", least=256
    )
    max_depth: int = _limits(
        64, "levels", "Nesting of sequences. Real datasets have at most 8 levels.", least=1
    )
    max_attributes: int = _limits(
        20_000,
        "attributes",
        "Attributes at the top level of one dataset. Each takes memory in searches; real datasets have some "
        "hundred. 0: no limit.",
    )
    max_metadata: int = _limits(
        256 << 20, "bytes", "DICOM JSON of one instance. A slide of 190,000 frames has 150 MB."
    )
