"""Every setting of the server: its name, default, unit and reason, in one frozen dataclass.

A setting is one row: `name: type = setting(default, unit, reason)`. Flags, environment, TOML file and the
reference file are made from it (config.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

Value: TypeAlias = str | int | float | bool | tuple[str, ...]


def setting(default: Value, unit: str, reason: str) -> Any:
    return dataclasses.field(default=default, metadata={"unit": unit, "reason": reason})


@dataclass(frozen=True, slots=True)
class Settings:
    """What a server runs by. Zero in a limit means: no limit, where its reason says so."""

    # Where it listens and who may ask
    host: str = setting(
        "127.0.0.1", "address", "There is no authentication yet, so only this machine can reach the server."
    )
    port: int = setting(
        8943,
        "TCP port",
        "One that nobody in the field uses: 8042 is Orthanc's, 8080 and 8000 are everybody's.",
    )
    health_port: int = setting(
        0,
        "TCP port",
        "Answers /health/live and /health/ready on 127.0.0.1, without the limits of the connections of "
        "clients: for probes. 0: only the service itself answers them.",
    )
    allow_remote_without_authentication: bool = setting(
        False,
        "yes or no",
        "Listening on an address that others can reach gives every study to everyone who can reach it: say "
        "so in words.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        "host names",
        "Names besides the loopback ones under which clients reach this server. A page that a browser was "
        "lured to can "
        "make its own name point here (DNS rebinding); it cannot choose another Host header.",
    )
    public_url: str = setting(
        "",
        "URL without version",
        "What absolute URLs in answers begin with, where a proxy hides the server. Empty: taken from the "
        "request.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        "addresses or networks",
        "Peers that are proxies: their forwarding headers are believed. From other peers these are ignored: "
        "any client can send them.",
    )
    forwarded_headers: str = setting(
        "x-forwarded",
        "x-forwarded | forwarded",
        "The family that the trusted proxies write: X-Forwarded-For, -Host and -Proto, or Forwarded "
        "(RFC 7239). The other family is ignored: a proxy passes on what a client wrote there.",
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        "origins, or *",
        "Web viewers on another origin (https://viewer.example) may read answers only if it is listed here.",
    )
    cors_max_age: int = setting(
        7200, "seconds", "How long a browser remembers a preflight; Chromium caps it at two hours."
    )

    # Where the studies lie
    data: str = setting(
        "data", "folder", "Segments, index and store.toml. A local file system: locks and syncs must mean it."
    )
    read_only: bool = setting(False, "yes or no", "Stores and deletes are answered with 403.")
    on_duplicate: str = setting(
        "refuse",
        "refuse | accept-identical | replace",
        "What happens to a SOP instance that is there already. Refusing can lose nothing.",
    )
    segment_size: int = setting(
        1 << 30,
        "bytes",
        "A segment over this size is sealed. Larger ones take longer to compact, smaller ones are more "
        "files.",
    )
    min_free: int = setting(
        0,
        "bytes",
        "With less free space stores answer 507, so that deleting and compacting still can work. 0: 1 GiB or "
        "2 % of the disk, whichever is less.",
    )
    keep_changes: int = setting(
        1_000_000,
        "changes",
        "The log of stored, replaced and deleted instances keeps this many, the latest, of about 200 bytes "
        "each in the index. Older ones are removed, a few thousand at a time. 0: all.",
    )
    keep_in_memory: int = setting(
        128 << 20,
        "bytes",
        "So much of an instance that is stored stays in the system's page cache. What a long value "
        "(Pixel Data) has beyond is written past it, by Linux 6.14 or later: a slide of 10 GB does not push "
        "out what viewers look at. 0: everything.",
    )

    # Processes
    workers: int = setting(
        0, "processes", "0: one a core. Each is a whole server; they share the port and the store."
    )
    max_connections: int = setting(
        4000,
        "connections a worker",
        "At this number a new connection replaces the one that has waited longest for a request; if none "
        "waits, it stays in the kernel's queue. Each costs about 20 kB and a descriptor.",
    )
    max_connections_per_client: int = setting(
        1000,
        "connections a worker",
        "The same for one address (of IPv6: one /64 network), so that one client cannot take all. A trusted "
        "proxy has no such limit. 0: none.",
    )
    express_lane: bool = setting(
        True,
        "yes or no",
        "Frames that are asked for again and again, in the same words, are answered before the request is "
        "parsed: several times as many a second.",
    )
    hang_timeout: float = setting(
        60.0,
        "seconds",
        "A worker whose event loop has not turned for so long is killed and replaced; the log has the stack "
        "of each of its threads. 0: never.",
    )
    drain_timeout: float = setting(
        30.0, "seconds", "After SIGTERM: how long answers and bodies in flight may take to finish."
    )

    # Limits of a request
    max_url: int = setting(
        16384, "bytes", "Answered with 414. Lists of frames and UIDs make long URLs, 16 kB hold 250 UIDs."
    )
    max_head: int = setting(
        16384,
        "bytes",
        "All headers of a request, and at most 100 lines; answered with 431. Tokens and cookies fit in half "
        "of it.",
    )
    max_body: int = setting(
        0, "bytes", "0: any size, because bodies are streamed. Otherwise answered with 413."
    )
    max_inflated_body: int = setting(
        64 << 30, "bytes", "The unpacked size of a gzip body; answered with 413. 0: any size."
    )
    max_inflation: int = setting(
        100,
        "times its size",
        "How much larger than itself a gzip body may get, counted beyond 256 MB; answered with 413. Images "
        "reach 20, gzip 1000. 0: any ratio.",
    )
    max_instance: int = setting(0, "bytes", "0: any size. One SOP instance; answered with 413.")
    max_parts: int = setting(
        100_000, "parts", "In one multipart body; each part costs memory until the answer is sent."
    )
    max_part_head: int = setting(
        16384, "bytes", "The header block of one part; real ones have a few hundred bytes."
    )
    max_uploads: int = setting(
        32,
        "uploads a worker",
        "At once, three quarters of them for one client; the next is answered with 503 and Retry-After. Each "
        "holds a 4 MB buffer and a segment.",
    )
    slow_upload_rate: int = setting(
        16384,
        "bytes a second",
        "While three quarters of max_uploads are taken, slower uploads end with 408, the slowest first. "
        "0: no upload ends for another.",
    )

    # How slow a client may be
    idle_timeout: float = setting(
        60.0,
        "seconds",
        "From the end of an answer to the end of the next request's headers.",
    )
    head_timeout: float = setting(
        20.0,
        "seconds",
        "From the first byte of a request's headers, or from connecting, to their end.",
    )
    stall_timeout: float = setting(
        30.0,
        "seconds",
        "Within each such time a body, in either direction, must move by min_rate times as much.",
    )
    min_rate: int = setting(
        1024, "bytes a second", "Slower bodies are cut off. The slowest modem was faster."
    )

    # Bit rot
    scrub_days: float = setting(
        30.0,
        "days",
        "Within this time the scrub reads every stored byte from the disk and compares it with its digest: "
        "disks can change bytes. 0: never.",
    )
    scrub_rate: int = setting(
        20 << 20,
        "bytes a second",
        "The scrub reads at most this much, past the page cache. Over 50 TB in 30 days; a disk reads "
        "five to a hundred times as fast. 0: no limit.",
    )

    # What readers and searches may cost
    bulk_threshold: int = setting(
        1024, "bytes", "Longer binary values are left out of the metadata and named by a BulkDataURI instead."
    )
    max_depth: int = setting(
        64, "levels", "Of sequences in sequences. Real ones end at about 8; a bomb nests by the thousand."
    )
    max_attributes: int = setting(
        20_000,
        "attributes",
        "At the top level of one dataset; 0: any number. Real ones have some hundred, and each takes memory "
        "in searches. In items of sequences there may be millions.",
    )
    max_metadata: int = setting(
        256 << 20,
        "bytes",
        "DICOM JSON of one instance; an enhanced multi-frame CT has about 10 MB, a slide of 190,000 frames "
        "150 MB.",
    )
    pixel_workers: int = setting(
        0,
        "processes",
        "That decode, encode and render frames, at most, for all workers together: one is started when "
        "metadata or a frame are asked for, others when there is work for them. As many again, of low "
        "priority, do work on over 4 MB of pixels, so that a small picture never waits for a large one. "
        "0: one a core.",
    )
    pixel_queue: int = setting(
        32,
        "orders a client and worker",
        "Batches of frames that may wait for a pixel process; the next is answered with 503 and Retry-After. "
        "Clients take turns. Each that waits may hold a thread.",
    )
    pixel_deadline: float = setting(
        30.0,
        "seconds",
        "The most that one batch of frames may take; up to 4 MB of pixels have 3 to 5 seconds of processor "
        "time. A hostile codestream may never end.",
    )
    max_rendered_pixels: int = setting(
        16 << 20,
        "pixels",
        "The largest picture that a viewport may ask for, unless the frame itself is larger; 400 over it. "
        "All frames of an animation together have four times as many at most. 4096 x 4096 are twice a 4K "
        "screen.",
    )
    pixel_memory: int = setting(
        2 << 30,
        "bytes",
        "That a pixel process may take beyond what its libraries need; a bomb asks for more.",
    )
    pixel_cache: int = setting(
        64 << 20,
        "bytes",
        "Made frames and pictures kept by each worker: viewers ask for the same ones again.",
    )
    read_ahead: int = setting(
        2,
        "frames",
        "Made before they are asked for, for whoever asks for one after the other, by pixel processes that "
        "would be idle; never more than were asked for in a row, nor more than 4. For whoever takes many of "
        "a series in another order some of the others are made, never more in vain than were asked for. "
        "0: none.",
    )
    search_limit: int = setting(200, "results", "Where a search names no limit.")
    max_search_limit: int = setting(
        5000, "results", "A larger limit is lowered to this, with a Warning header."
    )
    search_rows: int = setting(
        1_000_000,
        "rows",
        "Looked at by one search, some seconds of one core; a broader one is answered with 413.",
    )
    search_metadata: int = setting(
        256 << 20,
        "bytes",
        "Of DICOM JSON read by one search for attributes that are not indexed; a broader one is answered "
        "with 413.",
    )
    cache_max_age: int = setting(
        0,
        "seconds",
        "0: caches ask each time (no-cache, answered by 304). More lets browsers keep patients' pictures "
        "unasked.",
    )

    # What it tells
    log_format: str = setting("text", "text | json", "One line a request on standard error.")
    log_level: str = setting(
        "info", "debug | info | warning | error", "At warning the line a request is left out."
    )
