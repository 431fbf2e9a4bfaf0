"""The keys of an encrypted repository, as docs/internals/repository-format.md has them ("Encryption").

Words: a *data key* is what everything is sealed with, one for each *epoch*; a *recipient* is a passphrase or a key file
that it is wrapped for; a *wrapped key* is the object that says so. `sealing` derives the key of each object and seals
what is stored in it, `wrapped` wraps and unwraps data keys, `ring` has all keys of a repository together, `secrets`
gets passphrases and key files from where the user keeps them. Nothing here reads a repository: documents come in and go
out. cryptography is imported where it is used.
"""
