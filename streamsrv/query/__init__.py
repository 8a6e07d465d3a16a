"""The question of a search as values: attributes, normal forms, conditions and budgets."""
