"""Labels that follow channels through a forward pass, and the groups they show."""
