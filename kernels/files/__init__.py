"""Maps and what belongs to them on disk: whole or not at all, versioned, and refused if damaged."""
