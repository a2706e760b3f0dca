"""What is asked (cells), what runs next (sweep), what was found (store), and where (provenance)."""
