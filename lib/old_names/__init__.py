"""Former names of modules, with what documents showed of them; `lib/__init__.py` makes them importable."""
