"""Facts that come after what they are about, each an object of its own: pins, notes, findings, drills, known gaps.

Start reading at `states`.
"""
