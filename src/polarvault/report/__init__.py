"""Results to text, tables and JSON: the only code that formats for people."""
