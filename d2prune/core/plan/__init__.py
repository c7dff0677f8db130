"""The choice of channels to remove: criteria, limits, costs, allocation."""
