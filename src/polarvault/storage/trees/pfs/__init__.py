"""PFS, the PolarDB FileSystem, as a tree.

Theory of operation. pfsd is the daemon that has the disk open; programs speak to it through its library (libpfsd),
which has rules of its own: a process can have one disk, what is mounted does not survive a fork, a call to a daemon
that has gone never returns, and the library may write to standard error whatever and whenever it likes. So it is loaded
in a process of its own (`helper`), one for each disk and direction, and this process only sends requests
(`connection`), with time-outs: a helper that hangs is killed. Each of some channels is a socket and a block of shared
memory through which the bytes go; behind each is a thread in the helper, so that as many calls are under way at once.

A mount for reading does not protect the storage: the library makes files through it. So the helper itself refuses
everything that writes unless it was told to, and resolves all names below the one directory that it was started for.
"""
