"""Every limit on what comes from outside: servers, streams, backup directories, manifests, WAL archives.

Each is far above what an honest server or a large cluster reaches, and low enough that whoever reaches it cannot use up
the memory or the time of the machine. What is beyond a limit is an error that names the limit; nothing is cut silently.
Sizes are bytes.
"""

from __future__ import annotations

# Names. The server's own paths have at most 1024 bytes (MAXPGPATH), Linux takes 4096 (PATH_MAX) with the final NUL.
NAME_BYTES = 4095
# A data directory is four deep; what a DBA keeps inside of it may be deeper. Recursion anywhere stays shallow.
NAME_DEPTH = 64
# The directory descriptors kept open by one `storage.below.Below`; a process may have 1024 descriptors in all.
OPEN_DIRECTORIES = 64

# Protocol. Everything but CopyData is small: a row of a result, an error. A larger claim means that the frame is lost.
CONTROL_MESSAGE_BYTES = 16 << 20
# The server's own limit of a message (PQ_LARGE_MESSAGE_LIMIT).
COPY_MESSAGE_BYTES = 1 << 30
# The columns of a table are limited to 1600; our own queries have at most a few dozen.
RESULT_COLUMNS = 1664
# One result as a whole. The longest are lists of relations and tablespaces, and timeline histories.
RESULT_BYTES = 64 << 20
RESULT_ROWS = 400_000
# On one connection a server may warn of every page that it finds damaged (five of a file), but not for ever.
NOTICES = 100_000
# What libpq may gather before it hands anything out: it holds whole results and messages.
LIBPQ_BYTES = 128 << 20
# What is shown of a text from a server or a file; a message of megabytes would bury everything else.
SHOWN_CHARACTERS = 8192
SHOWN_NAME_CHARACTERS = 200

# A tablespace is a directory with a WAL-logged oid of its own; thousands are a sick cluster already.
TABLESPACES = 65_536
# A name header (GNU long name, pax) holds one path.
TAR_METADATA_BYTES = 1 << 20
# Members that are received and not written: PolarDB's page images and index files, by the ten thousand.
LEFT_OUT_MEMBERS = 1_000_000
# The largest member: PostgreSQL's relation segments have 1 GB, PolarDB's 128 GB; sizes are signed on every file system.
FILE_BYTES = (1 << 63) - 1

# A manifest takes about 150 bytes a file: this is a cluster of ten million files.
MANIFEST_BYTES = 2 << 30
# One that has to be parsed takes ten times its size in memory: three million files.
PARSED_MANIFEST_BYTES = 512 << 20
# The objects of a manifest are three deep.
JSON_DEPTH = 32
# backup_label, tablespace_map (a path a tablespace), polarvault_backup.json, PG_VERSION, signal files.
SMALL_FILE_BYTES = 16 << 20

# Timelines and WAL. A history has a line an ancestor; a cluster gets one with each promotion or recovery.
TIMELINES = 16_384
HISTORY_BYTES = 16 << 20
TIMELINE_ID = 0xFFFF_FFFF
WAL_MESSAGE_BYTES = 1 << 30
# How many segments may be looked for one after another where a range is given from outside.
WAL_SEGMENTS = 10_000_000

# A zstd decoder needs as much memory as the window that the frame claims. pg_basebackup's level 22 uses 128 MB, and so
# does --long; only a deliberate --long=31 asks for 2 GB.
ZSTD_WINDOW_BYTES = 128 << 20

# Configuration: the server's own file has 30 kB; a list of users (@file) has a line each.
CONFIGURATION_FILE_BYTES = 4 << 20
CONFIGURATION_FILES = 1000

# Repositories. refs lists every pack: 100 bytes for each 16 MiB stored, so this is 10 TiB of them.
REPOSITORY_JSON_BYTES = 64 << 20
# A root has 60 bytes for a thousand files.
ROOT_BYTES = 256 << 20
# The longest chunks are sums, 2 MiB, and tables of 4096 pieces with seven overlays each.
CHUNK_BYTES = 4 << 20
PACK_CHUNKS = 65_536
FOOTER_BYTES = 8 << 20
# A range of WAL in a repository.
WAL_RANGE_BYTES = 32 << 20
# What the WAL of a segment changes: 4 bytes a block, of which there are at most 8 million, and 18 a fork.
MAP_BYTES = 128 << 20
