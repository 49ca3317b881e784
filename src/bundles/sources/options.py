"""What a download allows itself."""

from __future__ import annotations

from dataclasses import dataclass

from bundles.sources.records import Known

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long a download waits, how often it tries, and how it cuts a file up.

    Progress means that a block more of the file is there than ever before. It sets the count of failures
    and the deadline back, so a file of 4 GB over a slow line is not given up, and a server that drips
    or dies after ten bytes each time is.

    Args:
        attempts: failures without progress after which it is given up.
        first_wait: seconds, at most, before the second attempt; doubled for each one after it. The wait
            is drawn between zero and that, so that a crowd does not come back all at once.
        longest_wait: seconds.
        deadline: seconds without progress after which it is given up, waits included.
        connect_timeout: seconds until a connection stands.
        read_timeout: seconds without a byte.
        block: bytes that are written and noted at a time; a killed process loses less than that per
            connection.
        opening: bytes that the first request asks for. Its answer tells the size of the file, whether
            ranges are answered, and how fast.
        parallel_from: size from which several connections are worth it.
        parallel_below: bytes per second; a link that gives more to one connection is not limited per
            connection, and several would only cost time.
        connections: how many, at most.
        shortest_run, longest_run: bytes that one of several connections asks for at a time: long while
            there is much to do, short towards the end.
        direct_from: length of an answer from which the socket is read in large pieces, see ``http.body``.
        lock_patience: seconds that a process waits for another one that shows no sign of progress.
        stale_after: seconds after which what others left half done is removed.
        small_deadline: seconds in all for a file of less than 10 MB from the Hub, and for a listing.
    """

    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 8.0
    deadline: float = 120.0
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    block: int = 256 * KIB
    opening: int = 4 * MIB
    parallel_from: int = 64 * MIB
    parallel_below: float = 100e6
    connections: int = 4
    shortest_run: int = 4 * MIB
    longest_run: int = 32 * MIB
    direct_from: int = 48 * MIB
    lock_patience: float = 60.0
    stale_after: float = 7 * 24 * 3600.0
    small_deadline: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What ``fetch`` asks a remote scheme to bring into the cache.

    Args:
        known: the source, and what is known of its bytes.
        is_locked: whether nobody else on this machine is at it.
        progress: whether to tell people how it goes.
        options: of the download.
    """

    known: Known
    is_locked: bool
    progress: bool
    options: Options
