"""`restore --only DATABASE`: the other databases are there as files of zeros, which take no room and are never fetched.

A server starts with them as long as nobody looks into them: recovery must not meet a record that needs what stood on a
page (`wal`), nobody must connect (`closing`), and then they can be dropped. Start reading at `leaving_out`.
"""
