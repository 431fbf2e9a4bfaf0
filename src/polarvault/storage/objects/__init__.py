"""Named byte objects: what a repository is made of, in a directory or in an object store.

Words: an *object* is bytes with a name, written once and never changed. A *name* is a path of narrow words joined by
slashes. A *folder* is the beginning of names, up to a slash; it exists only through the objects below it. A *store*
keeps objects (`store.ObjectStore`); a *wrapper* is a store around a store (`write_once`, `retrying`, `throttled`).

Rules of the room: `put_new` is conditional and durable on return; nothing replaces an object. Whoever opens a store
goes through `opening.open_store`, which puts the wrappers around it. Nothing here knows what the objects mean: that is
`repository`'s. Libraries of object stores are imported only where one is opened.
"""
