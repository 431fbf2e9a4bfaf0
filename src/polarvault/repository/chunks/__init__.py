"""Chunks in packs: written in order by `writer`, read in any order by `reader`."""
