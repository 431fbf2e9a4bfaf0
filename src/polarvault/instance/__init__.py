"""A server on this machine: its host, its programs, its start, its log.

Owns what every use case that runs server programs needs: which account they run as (`account`), where they are and
what they are (`programs`), how a server is started, reached and asked (`start`), and what a log says about a WAL
receiver (`walreceiver_log`). Leaves to its callers what the server is for, and to `recovery` everything about replay.
"""
