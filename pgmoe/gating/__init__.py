"""Which experts come next: one Protocol (`pgmoe.routing.Gating`), several ways of knowing."""
