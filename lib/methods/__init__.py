"""What PICA and IMC-SwAV have in common: the base for methods, their tasks and batches; not their losses."""
