"""Moving a store to another engine. Each verb imports its module."""
