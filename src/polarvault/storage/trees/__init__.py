"""A tree: directories and files below a root that somebody has named, wherever they lie, read and written by threads.

`model` is the seam; `local` is a directory of this machine. Whoever copies a database takes trees and opens nothing.
"""
