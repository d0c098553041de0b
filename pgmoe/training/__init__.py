"""How a model becomes a served one: upcycling a dense model, and the default model."""
