"""`restore --delta`: bring what is left of a cluster to a backup of it, and fetch and write only what differs.

Theory of operation. The target must be a stopped cluster of the backup's system identifier (`existing`). pg_control is
moved aside before anything is changed, so that no server starts from what is half one and half the other, and so that a
restore which was cut off can prove whose target it is when it is repeated. Then files that do not belong are removed,
every other one is read, its pages are compared with the page sums in the repository, and those that differ are written
in place (`files`, `bring`). What makes the restore valid is the same as ever: settings, checks, sync, pg_control last.

Nothing is undone when it fails: what was there is gone already. The target then says that it is unfinished.
"""
