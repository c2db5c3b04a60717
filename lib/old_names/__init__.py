"""Former names of modules, one line each; `lib/__init__.py` makes them importable."""
