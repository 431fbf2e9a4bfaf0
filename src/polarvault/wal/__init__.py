"""WAL: segment names, page and record headers, timeline history. No I/O."""
