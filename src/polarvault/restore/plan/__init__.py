"""What a restore will do, decided before anything is written. Start reading at gather.py, then plan.py.

`gather` asks the backup, this machine, the primary and the WAL, once and in that order, and stops at the first answer
that refuses; `plan` makes the plan of what was gathered and asks nobody. In between: what a backup is (`backup`,
`integrity`, `incremental`), which of several (`candidates`, `windows`), where everything goes (`places`, `routing`,
`configuration`), what the configuration names elsewhere (`outside`), what the WAL allows (`recovery`); what differs by
role is in `roles`, which settings are changed in `settings`. Writes nothing. Leaves to `standby` what the primary has
to be asked for.
"""
