"""PDUs, command sets and identifiers: bytes in, values and bytes out. Sans-IO."""
