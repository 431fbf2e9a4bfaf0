"""Use case: how all clusters stand, at a glance and for monitoring.

`run` asks every repository at once; `judge` is pure and compares with the limits of the configuration. What is asked
of one cluster is `repository.catalogue.overview`; how it looks, for people and for monitoring, is left to `report`.
"""
