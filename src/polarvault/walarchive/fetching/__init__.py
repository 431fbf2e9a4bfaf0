"""What stands around a fetch: places that are opened when they are asked, and segments fetched ahead.

`polarvault wal fetch` starts once for every segment: nothing heavy may be imported at the top of these modules.
"""
