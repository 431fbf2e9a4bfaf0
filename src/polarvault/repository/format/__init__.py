"""The bytes of a repository: names, objects, documents, packs, columns. No I/O.

`docs/internals/repository-format.md` defines what is here. Everything that is parsed comes from a stranger until its
hash was compared: lengths are checked against what is there, and against `model.limits`, before anything is allocated.
"""
