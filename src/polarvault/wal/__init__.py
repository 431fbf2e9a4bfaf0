"""WAL: pages, records, marks, timeline history. No I/O."""
