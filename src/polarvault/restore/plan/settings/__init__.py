"""Which settings of the restored server are changed, and why: pure rules over the configuration of the backup.

`decide` has their order, `book` keeps book of each change and knows in which file a line goes; `source`, `archiving`
and `confined` cut the copy off from its source, `hot_standby` raises what a recovery needs. What a role sets is its own
matter (`roles`).
"""
