"""What a restore writes: directories are claimed, files laid out, settings and signal files completed, pg_control last.

Follows the plan and decides nothing. Owns taking back what was made when a step fails.
"""
