"""What a restore will do, decided before anything is written: places, settings, recovery. Start reading at plan.py.

Owns every refusal that needs no primary. Reads backup, host and WAL; writes nothing. Leaves to `standby` what the
primary has to be asked for.
"""
