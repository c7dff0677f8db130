"""Which channels go: criteria, limits, costs, allocation."""
