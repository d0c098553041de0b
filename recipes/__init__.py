"""How the models that pgmoe ships and the quality figures are made."""
