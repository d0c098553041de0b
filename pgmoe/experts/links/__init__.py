"""How experts' bytes get into slots while compute goes on."""
