"""Restored servers that follow another one: standbys, and replicas on PolarDB's shared storage.

Owns what the primary is asked (`asking`, `primary`), what must hold to follow it (`follow_checks`, `live_storage`), the
slot that is made there (`held_slot`), and the wait until the server has caught up (`follow`).
"""
