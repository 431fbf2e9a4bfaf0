"""Real servers, and servers that misbehave, for tests.

cluster.py            Cluster: one PostgreSQL cluster and its instance, from initdb to removal
polar_cluster.py      PolarCluster: the same for PolarDB on shared storage
servers.py            which installations this machine has, and one shared cluster for each
small_files.py        pg_control, backup_label and the facts of a backup, without a server
program.py            run polarvault as a user does, as a process of its own
ports.py              TCP ports that nobody else takes meanwhile
verifying.py          damage a backup and undo it; ask verifybackup and pg_verifybackup about it
tcp_proxy.py          a bad network in front of a server
replay_server.py      recorded answers of a real PolarDB
two_archive_proxy.py  a PostgreSQL 15 whose base backup comes in PolarDB's two halves
"""
