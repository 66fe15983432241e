"""QubesDB: the per-qube key store and its servers."""
