"""Stages and sinks that an archive stream runs through, joined by bounded queues."""
