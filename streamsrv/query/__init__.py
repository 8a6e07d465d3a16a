"""What a search asks, as values: attributes, conditions, matching and its budget. It knows no store."""
